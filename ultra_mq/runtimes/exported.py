# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an exported file says of itself: by Ultralytics' metadata, and by its graph where it has none."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultra_mq.core import BackendError
from ultra_mq.graph import input_shape, load_graph
from ultra_mq.prepare import ImageSize


@dataclass(frozen=True)
class Exported:
    """An ONNX file or an engine.

    Attributes:
        path: The file.
        task: Ultralytics task; None where it does not say.
        names: Class index to class name; None where it does not say.
        imgsz: Image size in pixels; None where it is free and the file does not say.
        stride: Largest stride in pixels.
        channels: Channels of an image.
        batch: Images in one pass; 1 where that is free.
        decodes: Whether its outputs are boxes of queries, as those of RT-DETR, and not of anchors.
    """

    path: Path
    task: str | None
    names: dict[int, str] | None
    imgsz: ImageSize | None
    stride: int
    channels: int
    batch: int
    decodes: bool = False


def read_exported(path: Path) -> Exported:
    """Read what a file says of itself.

    Raises:
        BackendError: It is not there, or it is no exported file.
        ExportError: It is no ONNX.
    """
    from ultralytics.nn.backends.base import BaseBackend

    if not path.is_file():
        raise BackendError(f"'{path}' does not exist. Pass an exported .onnx or .engine file.")
    try:
        metadata = {key: _parsed(value) for key, value in BaseBackend.read_metadata(path).items()}
    except Exception as error:
        raise BackendError(f"'{path}' cannot be read: {error}. Pass an exported .onnx or .engine file.") from error
    shape: list[Any] = [metadata.get("batch", 1), metadata.get("channels", 3), *_pair(metadata.get("imgsz"))]
    if path.suffix == ".onnx":
        # What the graph takes counts more than what is said of it; a free axis is 0.
        sizes = input_shape(load_graph(path))
        shape = [fixed or said for fixed, said in zip(sizes, shape, strict=True)] if len(sizes) == 4 else shape
    batch, channels, height, width = shape
    names = metadata.get("names")
    settled = str(metadata.get("end2end", False)) == "True" or (metadata.get("args") or {}).get("nms")
    return Exported(
        path=path,
        task="segment" if path.suffix == ".onnx" and _has_prototypes(path) else metadata.get("task"),
        names={int(index): str(name) for index, name in names.items()} if isinstance(names, dict) else None,
        imgsz=None if not (height and width) else int(height) if height == width else (int(height), int(width)),
        stride=int(metadata.get("stride", 32)),
        channels=int(channels),
        batch=int(batch),
        decodes=path.suffix == ".onnx" and not settled and isinstance(names, dict) and _has_queries(path, len(names)),
    )


def _has_queries(path: Path, classes: int) -> bool:
    """Whether what belongs to an object stands in the last axis, a row a query; anchors have it in the one before."""
    sizes = [dim.dim_value for dim in load_graph(path).graph.output[0].type.tensor_type.shape.dim]
    return len(sizes) == 3 and sizes[2] in (6, 4 + classes) and sizes[1] != 4 + classes


def _has_prototypes(path: Path) -> bool:
    """Whether a graph gives mask prototypes beside its anchors, as segmentation heads do."""
    shapes = [value.type.tensor_type.shape.dim for value in load_graph(path).graph.output]
    return len(shapes) == 2 and [len(shape) for shape in shapes] == [3, 4]


def _pair(imgsz: Any) -> tuple[Any, Any]:
    if isinstance(imgsz, (list, tuple)) and imgsz:
        return imgsz[0], imgsz[-1]
    return imgsz, imgsz


def _parsed(value: Any) -> Any:
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value
