# SPDX-License-Identifier: AGPL-3.0-or-later
"""Faults of Q/DQ graphs that cost speed or accuracy without an error message."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ultra_mq.prepare import LAYER_OPS, layer_of

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

SMALLEST_NORMAL_FP16 = 6.1e-5


@dataclass(frozen=True)
class Fault:
    """One fault of a graph.

    Attributes:
        rule: Short name of the rule.
        node: ONNX node at fault.
        message: What is wrong and what it costs.
        fatal: Whether no runtime can use the graph as meant.
    """

    rule: str
    node: str
    message: str
    fatal: bool = False


def lint_graph(model: onnx.ModelProto) -> list[Fault]:
    """Check a graph for the faults that runtimes accept in silence or refuse without a reason.

    Args:
        model: ONNX model, any precision, with Q/DQ or without.
    """
    import onnx_ir as ir

    graph = ir.from_proto(model).graph
    faults = []
    if (name := graph.inputs[0].name) != "images":
        faults.append(Fault("input-name", str(name), "the input is not called 'images', which Ultralytics feeds", True))
    if not {"stride", "task", "names", "imgsz"} <= {entry.key for entry in model.metadata_props}:
        faults.append(Fault("metadata", "", "Ultralytics metadata is missing, so YOLO() cannot run the file", True))
    for node in graph:
        if node.op_type in LAYER_OPS:
            faults += _lint_consumer(node)
        elif node.op_type == "QuantizeLinear":
            faults += _lint_quantizer(node)
        elif node.op_type == "NonZero":
            faults.append(
                Fault(
                    "data-dependent-shape",
                    str(node.name),
                    f"'{node.name}' has a data-dependent shape, which TensorRT-RTX refuses",
                )
            )
    return faults


def quantized_layers(model: onnx.ModelProto) -> set[str]:
    """Module paths of the convolutions and linear layers whose input and weight both come from DequantizeLinear."""
    import onnx_ir as ir

    return {
        layer_of(str(node.name))
        for node in ir.from_proto(model).graph
        if node.op_type in LAYER_OPS and all(made_by(value) == "DequantizeLinear" for value in node.inputs[:2])
    }


def made_by(value: ir.Value | None) -> str:
    """Type of the operator that makes a tensor; empty for inputs, constants and what is left out."""
    producer = value.producer() if value is not None else None
    return producer.op_type if producer is not None else ""


def made_from(value: ir.Value | None) -> ir.Value | None:
    """First input of the operator that makes a tensor."""
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.inputs else None


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """Values of an initializer or of a Constant; None for what is computed or left out."""
    import onnx_ir as ir

    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def _lint_consumer(node: ir.Node) -> list[Fault]:
    faults = []
    name = str(node.name)
    for value in node.inputs[:2]:
        if made_by(value) == "Cast" and made_by(made_from(value)) == "DequantizeLinear":
            message = f"a Cast stands between DequantizeLinear and '{name}', which then does not run in INT8"
            faults.append(Fault("cast-after-dq", name, message))
    dequantized = [made_by(value) == "DequantizeLinear" for value in node.inputs]
    if len(dequantized) >= 2 and dequantized[0] != dequantized[1]:
        message = f"'{name}' has only one of input and weight quantized, so it runs in float"
        faults.append(Fault("half-quantized", name, message))
    if len(dequantized) >= 3 and dequantized[2]:
        message = f"the bias of '{name}' is dequantized, which TensorRT-RTX refuses"
        faults.append(Fault("bias-dq", name, message, True))
    if re.search(r"/dfl/", name) and any(dequantized):
        message = "DFL is quantized, an error of 3 to 41 pixels in the boxes"
        faults.append(Fault("dfl-quantized", name, message, True))
    return faults


def _lint_quantizer(node: ir.Node) -> list[Fault]:
    faults = []
    name = str(node.name)
    scale, zero_point = (constant_array(value) for value in (*node.inputs[1:3], None)[:2])
    if scale is not None and scale.dtype == np.float16 and (scale < SMALLEST_NORMAL_FP16).any():
        message = f"'{name}' has an FP16 scale below {SMALLEST_NORMAL_FP16:g}, which loses precision"
        faults.append(Fault("subnormal-scale", name, message))
    if zero_point is not None and (zero_point.dtype == np.uint8 or zero_point.astype(np.float32).any()):
        message = f"'{name}' is asymmetric or unsigned, which TensorRT does not accept"
        faults.append(Fault("asymmetric", name, message, True))
    return faults
