# SPDX-License-Identifier: AGPL-3.0-or-later
"""Torch model or plain ONNX to a Q/DQ graph that runtimes take.

In: a module, or an FP32 ONNX file. Out: ONNX files, put in order, linted, repaired; and an ``Audit`` of any.
"""

from ultra_mq.graph.audit import audit_graph
from ultra_mq.graph.autocast import convert_to_fp16, decode_patterns
from ultra_mq.graph.export import OPSET, export_onnx, has_fp8
from ultra_mq.graph.lint import lint_graph, quantized_layers
from ultra_mq.graph.onnx_file import (
    Graph,
    describe_graph,
    input_shape,
    load_graph,
    metadata_of,
    read_metadata,
    weights_leave_room,
)
from ultra_mq.graph.onnx_ptq import (
    PtqMethod,
    PtqSettings,
    hot_spots,
    load_calibration,
    load_pixels,
    ptq,
    ptq_plan,
    save_calibration,
)
from ultra_mq.graph.repair import find_failed_nodes, keep_in_float, layers_of
from ultra_mq.graph.unsigned import make_unsigned, signed_activations

__all__ = [
    "OPSET",
    "Graph",
    "PtqMethod",
    "PtqSettings",
    "audit_graph",
    "convert_to_fp16",
    "decode_patterns",
    "describe_graph",
    "export_onnx",
    "find_failed_nodes",
    "has_fp8",
    "hot_spots",
    "input_shape",
    "keep_in_float",
    "layers_of",
    "lint_graph",
    "load_calibration",
    "load_graph",
    "load_pixels",
    "make_unsigned",
    "metadata_of",
    "ptq",
    "ptq_plan",
    "quantized_layers",
    "read_metadata",
    "save_calibration",
    "signed_activations",
    "weights_leave_room",
]
