# SPDX-License-Identifier: AGPL-3.0-or-later
"""Q/DQ pairs of an ONNX graph put in order: one pair a tensor and scale, and nothing in their way."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

FP8_OPS = {"TRT_FP8QuantizeLinear": "QuantizeLinear", "TRT_FP8DequantizeLinear": "DequantizeLinear"}
FP8_ZERO = "fp8_zero_point"


def tidy_qdq(model: onnx.ModelProto) -> None:
    """Make the graph say once what the exporter says several times; its values stay the same to the bit.

    The exporter writes a pair for every reader of a tensor, and a Cast to FP32 before a pair whose input type it did
    not know. A runtime merges and removes them at best; at worst the Cast keeps a Q from moving up to the
    convolution that should write INT8.

    Args:
        model: FP32 graph with Q/DQ, changed in place.
    """
    graph = model.graph
    _use_native_fp8(graph)
    _drop_idle_casts(model)
    constants = constant_bytes(graph)
    renamed: dict[str, str] = {}
    known: dict[tuple[object, ...], str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            parameters = tuple(constants.get(name, name) for name in node.input[1:])
            key = (node.op_type, node.input[0], *parameters, *(a.SerializeToString() for a in node.attribute))
            if key in known:
                renamed[node.output[0]] = known[key]
                continue
            known[key] = node.output[0]
        kept.append(node)
    _replace_nodes(graph, kept)


def _use_native_fp8(graph: onnx.GraphProto) -> None:
    """Replace ModelOpt's custom FP8 operators, which no runtime but an old TensorRT knows, by those of ONNX."""
    import onnx

    custom = [node for node in graph.node if node.op_type in FP8_OPS]
    for node in custom:
        node.op_type, node.domain = FP8_OPS[node.op_type], ""
        node.input.append(FP8_ZERO)
    if custom:
        # The exporter noted UINT8, which stood for FP8 before ONNX had it.
        del graph.value_info[:]
        graph.initializer.append(onnx.helper.make_tensor(FP8_ZERO, onnx.TensorProto.FLOAT8E4M3FN, [], [0.0]))


def _drop_idle_casts(model: onnx.ModelProto) -> None:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)}
    outputs = {value.name for value in model.graph.output}
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type == "Cast" and types.get(node.input[0]) == node.attribute[0].i and node.output[0] not in outputs:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    _replace_nodes(model.graph, kept)


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Keep these nodes, without the constants that nothing reads any more."""
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    nodes = [node for node in nodes if node.op_type != "Constant" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(nodes)


def constant_bytes(graph: onnx.GraphProto) -> dict[str, bytes]:
    """Name of every constant to its type and content: the exporter repeats equal scales under new names."""
    import onnx

    found = {}
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        found[tensor.name] = f"{array.dtype}{array.shape}".encode() + array.tobytes()
    for node in graph.node:
        if node.op_type == "Constant":
            array = onnx.numpy_helper.to_array(node.attribute[0].t)
            found[node.output[0]] = f"{array.dtype}{array.shape}".encode() + array.tobytes()
    return found
