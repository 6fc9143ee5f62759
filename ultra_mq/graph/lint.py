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
    import onnx

    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
    faults = []
    if graph.input[0].name != "images":
        faults.append(
            Fault("input-name", graph.input[0].name, "the input is not called 'images', which Ultralytics feeds", True)
        )
    if not {"stride", "task", "names", "imgsz"} <= {entry.key for entry in model.metadata_props}:
        faults.append(Fault("metadata", "", "Ultralytics metadata is missing, so YOLO() cannot run the file", True))
    for node in graph.node:
        if node.op_type in LAYER_OPS:
            faults += _lint_consumer(node, producers)
        elif node.op_type == "QuantizeLinear":
            faults += _lint_quantizer(node, constants)
        elif node.op_type == "NonZero":
            faults.append(
                Fault(
                    "data-dependent-shape",
                    node.name,
                    f"'{node.name}' has a data-dependent shape, which TensorRT-RTX refuses",
                )
            )
    return faults


def quantized_layers(model: onnx.ModelProto) -> set[str]:
    """Module paths of the convolutions and linear layers whose input and weight both come from DequantizeLinear."""
    producers = {output: node for node in model.graph.node for output in node.output}
    found = set()
    for node in model.graph.node:
        if node.op_type in LAYER_OPS and len(node.input) >= 2:
            sources = [producers.get(name) for name in node.input[:2]]
            if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
                found.add(layer_of(node.name))
    return found


def _lint_consumer(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> list[Fault]:
    faults = []
    sources = [producers.get(name) for name in node.input]
    for source in sources[:2]:
        if source is not None and source.op_type == "Cast":
            before = producers.get(source.input[0])
            if before is not None and before.op_type == "DequantizeLinear":
                faults.append(
                    Fault(
                        "cast-after-dq",
                        node.name,
                        f"a Cast stands between DequantizeLinear and '{node.name}', which then does not run in INT8",
                    )
                )
    dequantized = [source is not None and source.op_type == "DequantizeLinear" for source in sources]
    if len(dequantized) >= 2 and dequantized[0] != dequantized[1]:
        faults.append(
            Fault(
                "half-quantized",
                node.name,
                f"'{node.name}' has only one of input and weight quantized, so it runs in float",
            )
        )
    if len(dequantized) >= 3 and dequantized[2]:
        faults.append(
            Fault("bias-dq", node.name, f"the bias of '{node.name}' is dequantized, which TensorRT-RTX refuses", True)
        )
    if re.search(r"/dfl/", node.name) and any(dequantized):
        faults.append(
            Fault("dfl-quantized", node.name, "DFL is quantized, an error of 3 to 41 pixels in the boxes", True)
        )
    return faults


def _lint_quantizer(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> list[Fault]:
    faults = []
    scale = constants.get(node.input[1])
    if scale is not None and scale.dtype == np.float16 and (scale < SMALLEST_NORMAL_FP16).any():
        faults.append(
            Fault(
                "subnormal-scale",
                node.name,
                f"'{node.name}' has an FP16 scale below {SMALLEST_NORMAL_FP16:g}, which loses precision",
            )
        )
    zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero_point is not None and (zero_point.dtype == np.uint8 or zero_point.astype(np.float32).any()):
        faults.append(
            Fault(
                "asymmetric",
                node.name,
                f"'{node.name}' is asymmetric or unsigned, which TensorRT does not accept",
                True,
            )
        )
    return faults
