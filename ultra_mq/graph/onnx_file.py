# SPDX-License-Identifier: AGPL-3.0-or-later
"""ONNX files: read, and written whole once they pass the lint, with the metadata that Ultralytics needs."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultra_mq.core import ExportError, atomic_path
from ultra_mq.graph.lint import Fault, lint_graph

if TYPE_CHECKING:
    import onnx


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


def copy_metadata(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Give a graph the metadata that Ultralytics needs to run it; ModelOpt's conversions drop it."""
    del target.metadata_props[:]
    target.metadata_props.extend(source.metadata_props)


def read_metadata(graph: onnx.ModelProto) -> dict[str, Any]:
    """Ultralytics metadata of a graph with its values parsed, as an engine's header holds them."""
    metadata: dict[str, Any] = {}
    for entry in graph.metadata_props:
        metadata[entry.key] = entry.value
        with contextlib.suppress(ValueError, SyntaxError):  # plain text, such as the description
            metadata[entry.key] = ast.literal_eval(entry.value)
    return metadata
