# SPDX-License-Identifier: AGPL-3.0-or-later
"""Graphs that TensorRT will not build: which layers it stumbled over, and the graph with those left in float."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ultra_mq.graph.lint import constant_array, made_by, made_from
from ultra_mq.prepare import LAYER_OPS, layer_of

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

MARKED_INT8 = "incorrectly marked as an int8 node"
"""TensorRT 8.6 names no node here. It has moved a QuantizeLinear up through a Reshape or Transpose and then finds no
INT8 kernel for what it has made; the layer behind that QuantizeLinear is the one to leave in float."""

MOVES_DATA = ("Reshape", "Transpose")


def find_failed_nodes(graph: onnx.ModelProto, message: str, log: str) -> list[str]:
    """Quantized nodes that a failed build points at.

    Args:
        graph: The graph that did not build.
        message: The builder's errors.
        log: Everything it wrote; its last lines name the node it was busy with.

    Returns:
        Names of nodes with quantized inputs, fewest first guess; empty where nothing can be left in float.
    """
    import onnx_ir as ir

    nodes = ir.from_proto(graph).graph
    quantized = [node for node in nodes if _quantized_inputs(node)]
    named = _named_in(message, quantized)
    if not named and MARKED_INT8 in message:
        named = [node for node in quantized if _reads_moved_data(node)]
    if not named:
        busy = re.findall(r"Computing costs for (.*)", log)
        named = _named_in(busy[-1], quantized) if busy else []
    if not named and MARKED_INT8 in message:
        attention = {_folder(node) for node in nodes if node.op_type == "Softmax"}
        named = [node for node in quantized if any(str(node.name).startswith(block) for block in attention)]
    return [str(node.name) for node in named]


def keep_in_float(graph: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Copy of a Q/DQ graph in which these nodes read float inputs and float weights.

    Only the readers change: a QuantizeLinear that other nodes read too stays for them. Weights that are stored as
    integers are dequantized, so the layer computes with the values that INT8 would have had.

    Args:
        graph: Q/DQ graph.
        names: Nodes to take out of quantization.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    repaired = ir.from_proto(graph)
    for node in list(repaired.graph):
        for index in _quantized_inputs(node) if node.name in names else ():
            quantized = made_from(node.inputs[index])
            source = made_from(quantized)
            if source is None:  # the integers of a weight
                source = _dequantized_weight(node.inputs[index])
                repaired.graph.register_initializer(source)
            node.replace_input_with(index, source)
    common.RemoveUnusedNodesPass()(repaired)
    return ir.to_proto(repaired)


def _dequantized_weight(value: ir.Value | None) -> ir.Value:
    """The float values of a weight that is stored as integers, in place of what DequantizeLinear makes of them."""
    import onnx_ir as ir

    dequantize = value.producer() if value is not None else None
    assert value is not None
    assert dequantize is not None
    integers, scale = (constant_array(value) for value in dequantize.inputs[:2])
    assert integers is not None
    assert scale is not None
    axis = dequantize.attributes["axis"].as_int() if "axis" in dequantize.attributes else 1
    if scale.ndim:
        scale = scale.reshape([-1 if d == axis else 1 for d in range(integers.ndim)])
    name = f"{value.name}_float"
    floats = (integers.astype(scale.dtype) * scale).astype(scale.dtype)
    return ir.Value(name=name, const_value=ir.tensor(floats, name=name))


def layers_of(names: list[str]) -> list[str]:
    """Module paths of the convolutions and linear layers among these nodes."""
    return [layer_of(name) for name in names if re.search(r"/(Conv|Gemm|MatMul)(_\d+)?$", name)]


def _named_in(text: str, nodes: list[ir.Node]) -> list[ir.Node]:
    named = [node for node in nodes if re.search(rf"(?<![\w/.]){re.escape(str(node.name))}(?![\w/.]*\w)", text)]
    if named or "ForeignNode" not in text:
        return named
    # A region for Myelin is named by its first and last node alone: "{ForeignNode[A...B]}".
    ends = [end for region in re.findall(r"ForeignNode\[(.*?)\]", text) for end in region.split("...")]
    prefixes = {end.rsplit("/", 1)[0] for end in ends if end.count("/") > 1}
    return [node for node in nodes if any(str(node.name).startswith(f"{prefix}/") for prefix in prefixes)]


def _reads_moved_data(node: ir.Node) -> bool:
    if node.op_type not in LAYER_OPS:
        return False
    quantized = [made_from(node.inputs[index]) for index in _quantized_inputs(node)]
    return any(made_by(value) == "QuantizeLinear" and made_by(made_from(value)) in MOVES_DATA for value in quantized)


def _folder(node: ir.Node) -> str:
    return str(node.name).rsplit("/", 1)[0] + "/"


def _quantized_inputs(node: ir.Node) -> list[int]:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return []
    return [index for index, value in enumerate(node.inputs) if made_by(value) == "DequantizeLinear"]
