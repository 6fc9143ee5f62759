# SPDX-License-Identifier: AGPL-3.0-or-later
"""ONNX files: read, and written whole once they pass the lint, with the metadata that Ultralytics needs."""

from __future__ import annotations

import ast
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultra_mq.core import ExportError, atomic_path
from ultra_mq.graph.lint import Fault, constant_array, lint_graph, made_by, made_from
from ultra_mq.prepare import LAYER_OPS, Data, height_width

if TYPE_CHECKING:
    import onnx

# It warns of every value that has a shape and no type, as ONNX allows, whenever it writes or infers.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)

INPUT = "images"
"""What Ultralytics calls the input."""

SEVEN_BITS = 64
"""Largest weight for which two products with 8 bits stay below 2^15: 255 x 64 x 2."""


@dataclass(frozen=True)
class Graph:
    """An ONNX file that passed the lint.

    Attributes:
        path: The file.
        size_bytes: Its size.
        faults: What the lint found, none of it fatal.
    """

    path: Path
    size_bytes: int
    faults: tuple[Fault, ...]


def load_graph(path: Path) -> onnx.ModelProto:
    """Load an ONNX file.

    Raises:
        ExportError: It cannot be read.
    """
    import onnx

    try:
        return onnx.load(str(path))
    except Exception as error:
        raise ExportError(f"'{path}' cannot be read as ONNX: {error}. Pass an exported .onnx file.") from error


def save_graph(model: onnx.ModelProto, path: Path, allow: Sequence[str] = ()) -> Graph:
    """Write an ONNX file, atomically, once it passes the lint.

    Args:
        model: ONNX model with Ultralytics metadata.
        path: Where to write.
        allow: Rules whose faults are not fatal this time.

    Raises:
        ExportError: A fault that no runtime survives; nothing is written then.
    """
    import onnx

    faults = lint_graph(model)
    if fatal := [fault for fault in faults if fault.fatal and fault.rule not in allow]:
        raise ExportError(
            f"The graph for '{path.name}' is not usable: {'; '.join(fault.message for fault in fatal[:5])}. "
            f"Please report it with your model's YAML; nothing was written."
        )
    with atomic_path(path) as temporary:
        onnx.save(model, str(temporary))
    return Graph(path, path.stat().st_size, tuple(faults))


def input_shape(graph: onnx.ModelProto) -> tuple[int, ...]:
    """Shape of a graph's input; 0 stands for a dynamic axis."""
    return tuple(dimension.dim_value for dimension in graph.graph.input[0].type.tensor_type.shape.dim)


def weights_leave_room(graph: onnx.ModelProto) -> bool:
    """Whether the INT8 weights of a graph use 7 bits at most, so that no sum of two products overflows 16 bits.

    Args:
        graph: FP32 or Q/DQ graph.
    """
    import onnx_ir as ir

    for node in ir.from_proto(graph).graph:
        if node.op_type not in LAYER_OPS or made_by(node.inputs[1]) != "DequantizeLinear":
            continue
        dequantize, stored = node.inputs[1].producer(), made_from(node.inputs[1])
        assert dequantize is not None
        if made_by(stored) == "QuantizeLinear":
            stored = made_from(stored)
        values, scale = constant_array(stored), constant_array(dequantize.inputs[1])
        if values is None or scale is None:
            continue
        if values.dtype.kind == "f":
            axis = dequantize.attributes.get_int("axis", 1)
            shape = [-1 if index == axis else 1 for index in range(values.ndim)] if scale.size > 1 else []
            values = np.rint(values / scale.reshape(shape))
        if np.abs(values.astype(np.int32)).max() > SEVEN_BITS:
            return False
    return True


def copy_metadata(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Give a graph the metadata that Ultralytics needs to run it; ModelOpt's conversions drop it."""
    del target.metadata_props[:]
    target.metadata_props.extend(source.metadata_props)


def metadata_of(data: Data, batch: int) -> dict[str, str]:
    """Ultralytics metadata of a model that belongs to some data.

    Args:
        data: Data of the model's task, with its classes.
        batch: Images in one pass.
    """
    known: dict[str, Any] = {
        "task": data.task, "names": data.names, "stride": 32, "batch": batch, "channels": data.channels,
        "imgsz": list(height_width(data.imgsz)), "args": {},
    }  # fmt: skip
    known |= {"kpt_shape": list(data.kpt_shape)} if data.kpt_shape else {}
    return {key: str(value) for key, value in known.items()}


def describe_graph(source: Path, path: Path, data: Data | None) -> Path:
    """Copy a graph of another exporter to one as Ultralytics wants it: described, and with the input that it feeds.

    What the graph says of itself stays; the rest comes from the data that it belongs to.

    Args:
        source: ONNX file of another exporter.
        path: Where to write.
        data: Data of the model's task, with its classes; None for a graph that says what it is.
    """
    import onnx

    model = load_graph(source)
    known = metadata_of(data, input_shape(model)[0] or 1) if data is not None else {}
    known |= {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, known)
    called = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = [INPUT if name == called else name for name in node.input]
    model.graph.input[0].name = INPUT
    onnx.save(model, str(path))
    return path


def read_metadata(graph: onnx.ModelProto) -> dict[str, Any]:
    """Ultralytics metadata of a graph with its values parsed, as an engine's header holds them."""
    metadata: dict[str, Any] = {}
    for entry in graph.metadata_props:
        metadata[entry.key] = entry.value
        with contextlib.suppress(ValueError, SyntaxError):  # plain text, such as the description
            metadata[entry.key] = ast.literal_eval(entry.value)
    return metadata
