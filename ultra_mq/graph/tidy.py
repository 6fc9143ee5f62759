# SPDX-License-Identifier: AGPL-3.0-or-later
"""Q/DQ pairs of an ONNX graph put in order: one pair a tensor and scale, and nothing in their way."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

FP8_OPS = {"TRT_FP8QuantizeLinear": "QuantizeLinear", "TRT_FP8DequantizeLinear": "DequantizeLinear"}
FP8_ZERO = "fp8_zero_point"


def tidy_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make the graph say once what the exporter says several times; its values stay the same to the bit.

    The exporter writes a pair for every reader of a tensor, and a Cast to FP32 before a pair whose input type it did
    not know. A runtime merges and removes them at best; at worst the Cast keeps a Q from moving up to the
    convolution that should write INT8.

    Args:
        model: FP32 graph with Q/DQ; it is left as it is.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    tidied = ir.from_proto(model)
    use_native_fp8(tidied)
    common.ShapeInferencePass()(tidied)
    drop_idle_casts(tidied)
    common.DeduplicateInitializersPass()(tidied)
    common.CommonSubexpressionEliminationPass()(tidied)
    common.RemoveUnusedNodesPass()(tidied)
    return ir.to_proto(tidied)


def use_native_fp8(model: ir.Model) -> None:
    """Replace ModelOpt's custom FP8 operators, which no runtime but an old TensorRT knows, by those of ONNX."""
    import onnx
    import onnx_ir as ir

    custom = [node for node in model.graph if node.op_type in FP8_OPS]
    if not custom:
        return
    tensor = ir.from_proto(onnx.helper.make_tensor(FP8_ZERO, onnx.TensorProto.FLOAT8E4M3FN, [], [0.0]))
    zero = ir.Value(name=FP8_ZERO, const_value=tensor)
    model.graph.register_initializer(zero)
    for node in custom:
        native = ir.node(FP8_OPS[node.op_type], [*node.inputs, zero], node.attributes, name=node.name)
        native.outputs[0].name = node.outputs[0].name
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [native], node.outputs, native.outputs)
    # The exporter noted UINT8, which stood for FP8 before ONNX had it.
    for value in [value for node in model.graph for value in node.outputs if not value.is_graph_output()]:
        value.type = None


def drop_idle_casts(model: ir.Model) -> None:
    """Remove casts to the type that a tensor has anyway."""
    for node in list(model.graph):
        if node.op_type != "Cast" or node.outputs[0].is_graph_output():
            continue
        source = node.inputs[0]
        if source is not None and source.dtype is not None and source.dtype == node.attributes["to"].as_int():
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
