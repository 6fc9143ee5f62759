# SPDX-License-Identifier: AGPL-3.0-or-later
"""Activations of a Q/DQ graph from signed to unsigned: the same values, in the type that CPUs multiply.

OpenVINO moves signed activations to unsigned ones itself, and on CPUs without AMX it gets other values by that, with
VNNI and without (docs/results/cpu.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ultra_mq.core import atomic_path
from ultra_mq.graph.lint import constant_array
from ultra_mq.graph.onnx_file import load_graph

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

ZERO = 128
"""What stands for zero, so that a step is the same step: -127 to 127 becomes 1 to 255."""


def make_unsigned(path: Path) -> int:
    """Rewrite the signed INT8 activations of a file, in place.

    Args:
        path: ONNX file with Q/DQ.

    Returns:
        How many tensors were changed.
    """
    import onnx
    import onnx_ir as ir

    model = ir.from_proto(load_graph(path))
    signed = _signed_quantizers(model.graph)
    if not signed:
        return 0
    zeros: dict[tuple[int, ...], ir.Value] = {}
    for quantize in signed:
        scale = constant_array(quantize.inputs[1])
        assert scale is not None
        if scale.shape not in zeros:
            name = f"unsigned_zero_{len(zeros)}"
            tensor = ir.tensor(np.full(scale.shape, ZERO, np.uint8), name=name)
            zeros[scale.shape] = ir.Value(name=name, const_value=tensor)
            model.graph.register_initializer(zeros[scale.shape])
        for node in (quantize, *(use.node for use in quantize.outputs[0].uses())):
            node.resize_inputs(3)
            node.replace_input_with(2, zeros[scale.shape])
        quantize.outputs[0].type = None  # it is no longer what the exporter noted
    with atomic_path(path) as temporary:
        onnx.save(ir.to_proto(model), str(temporary))
    return len(signed)


def signed_activations(model: onnx.ModelProto) -> list[str]:
    """Tensors between Q and DQ that are signed INT8 and no weights."""
    import onnx_ir as ir

    return [str(node.outputs[0].name) for node in _signed_quantizers(ir.from_proto(model).graph)]


def _signed_quantizers(graph: ir.Graph) -> list[ir.Node]:
    found = []
    for node in graph:
        if node.op_type != "QuantizeLinear" or constant_array(node.inputs[0]) is not None:
            continue
        # Without a zero point ONNX means unsigned.
        zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
        if zero is not None and zero.dtype == np.int8 and not zero.any():
            found.append(node)
    return found
