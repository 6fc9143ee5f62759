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
from ultra_mq.graph.onnx_file import load_graph

if TYPE_CHECKING:
    import onnx

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
    from onnx import numpy_helper

    model = load_graph(path)
    signed = signed_activations(model)
    if not signed:
        return 0
    names: dict[tuple[int, ...], str] = {}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute:
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    changed = set(signed)
    for node in model.graph.node:
        quantizes = node.op_type == "QuantizeLinear" and node.output[0] in changed
        if not quantizes and not (node.op_type == "DequantizeLinear" and node.input[0] in changed):
            continue
        shape = constants[node.input[1]].shape
        if shape not in names:
            names[shape] = f"unsigned_zero_{len(names)}"
            zero = np.full(shape, ZERO, np.uint8)
            model.graph.initializer.append(numpy_helper.from_array(zero, names[shape]))
        node.input[:] = [*node.input[:2], names[shape]]
    # Shapes and types of the tensors between Q and DQ are no longer what they say.
    kept = [value for value in model.graph.value_info if value.name not in changed]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    with atomic_path(path) as temporary:
        onnx.save(model, str(temporary))
    return len(signed)


def signed_activations(model: onnx.ModelProto) -> list[str]:
    """Tensors between Q and DQ that are signed INT8 and no weights."""
    import onnx
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute:
            constants[node.output[0]] = node.attribute[0].t
    found = []
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants:
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        # Without a zero point ONNX means unsigned.
        if zero is not None and zero.data_type == onnx.TensorProto.INT8 and not numpy_helper.to_array(zero).any():
            found.append(node.output[0])
    return found
