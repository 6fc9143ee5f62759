# SPDX-License-Identifier: AGPL-3.0-or-later
"""Graphs that TensorRT will not build: which layers it stumbled over, and the graph with those left in float."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

from ultra_mq.prepare import LAYER_OPS, layer_of

if TYPE_CHECKING:
    import onnx

    Producers = dict[str, onnx.NodeProto]

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
    producers = _producers(graph)
    quantized = [node for node in graph.graph.node if _quantized_inputs(node, producers)]
    named = _named_in(message, quantized)
    if not named and MARKED_INT8 in message:
        named = [node for node in quantized if _reads_moved_data(node, producers)]
    if not named:
        busy = re.findall(r"Computing costs for (.*)", log)
        named = _named_in(busy[-1], quantized) if busy else []
    if not named and MARKED_INT8 in message:
        blocks = _attention_blocks(graph)
        named = [node for node in quantized if any(node.name.startswith(block) for block in blocks)]
    return [node.name for node in named]


def keep_in_float(graph: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Copy of a Q/DQ graph in which these nodes read float inputs and float weights.

    Only the readers change: a QuantizeLinear that other nodes read too stays for them. Weights that are stored as
    integers are dequantized, so the layer computes with the values that INT8 would have had.

    Args:
        graph: Q/DQ graph.
        names: Nodes to take out of quantization.
    """
    from onnx import numpy_helper

    repaired = copy.deepcopy(graph)
    producers = _producers(repaired)
    constants = {tensor.name: tensor for tensor in repaired.graph.initializer}
    for node in repaired.graph.node:
        if node.name not in names:
            continue
        for index in _quantized_inputs(node, producers):
            dequantize = producers[node.input[index]]
            quantize = producers.get(dequantize.input[0])
            if quantize is not None:
                node.input[index] = quantize.input[0]
            else:
                arrays = [numpy_helper.to_array(constants[name]) for name in dequantize.input[:2]]
                axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1)
                scale = arrays[1]
                if scale.ndim:
                    scale = scale.reshape([-1 if d == axis else 1 for d in range(arrays[0].ndim)])
                values = (arrays[0].astype(scale.dtype) * scale).astype(scale.dtype)
                name = f"{node.input[index]}_float"
                repaired.graph.initializer.append(numpy_helper.from_array(values, name))
                node.input[index] = name
    _drop_unused(repaired)
    return repaired


def layers_of(names: list[str]) -> list[str]:
    """Module paths of the convolutions and linear layers among these nodes."""
    return [layer_of(name) for name in names if re.search(r"/(Conv|Gemm|MatMul)(_\d+)?$", name)]


def _named_in(text: str, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    found = [node for node in nodes if re.search(rf"(?<![\w/.]){re.escape(node.name)}(?![\w/.]*\w)", text)]
    if found or "ForeignNode" not in text:
        return found
    # A region for Myelin is named by its first and last node alone: "{ForeignNode[A...B]}".
    ends = [end for region in re.findall(r"ForeignNode\[(.*?)\]", text) for end in region.split("...")]
    prefixes = {end.rsplit("/", 1)[0] for end in ends if end.count("/") > 1}
    return [node for node in nodes if any(node.name.startswith(f"{prefix}/") for prefix in prefixes)]


def _reads_moved_data(node: onnx.NodeProto, producers: Producers) -> bool:
    if node.op_type not in LAYER_OPS:
        return False
    for index in _quantized_inputs(node, producers):
        quantize = producers.get(producers[node.input[index]].input[0])
        source = producers.get(quantize.input[0]) if quantize is not None else None
        if source is not None and source.op_type in MOVES_DATA:
            return True
    return False


def _attention_blocks(graph: onnx.ModelProto) -> set[str]:
    return {node.name.rsplit("/", 1)[0] + "/" for node in graph.graph.node if node.op_type == "Softmax"}


def _quantized_inputs(node: onnx.NodeProto, producers: Producers) -> list[int]:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return []
    sources = [producers.get(name) for name in node.input]
    return [i for i, source in enumerate(sources) if source is not None and source.op_type == "DequantizeLinear"]


def _producers(graph: onnx.ModelProto) -> Producers:
    return {output: node for node in graph.graph.node for output in node.output}


def _drop_unused(graph: onnx.ModelProto) -> None:
    nodes = list(graph.graph.node)
    while True:
        used = {name for node in nodes for name in node.input} | {output.name for output in graph.graph.output}
        kept = [node for node in nodes if any(output in used for output in node.output)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    initializers = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(initializers)
