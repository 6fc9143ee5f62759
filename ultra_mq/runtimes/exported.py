# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an exported file says of itself: by Ultralytics' metadata, and by its graph where it has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultra_mq.core import BackendError
from ultra_mq.graph import input_shape, load_graph, read_metadata
from ultra_mq.prepare import ImageSize

if TYPE_CHECKING:
    import onnx


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
        settled: Whether it suppresses overlaps itself: end to end, or with NMS in the graph; a row an object then.
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
    settled: bool = False


def read_exported(path: Path) -> Exported:
    """Read what a file says of itself.

    Raises:
        BackendError: It is not there, or it is no exported file.
        ExportError: It is no ONNX.
    """
    from ultralytics.nn.backends.base import BaseBackend

    if not path.is_file():
        raise BackendError(f"'{path}' does not exist. Pass an exported .onnx or .engine file.")
    graph = load_graph(path) if path.suffix == ".onnx" else None
    try:
        metadata = read_metadata(graph) if graph is not None else BaseBackend.read_metadata(path)
    except Exception as error:
        raise BackendError(f"'{path}' cannot be read: {error}. Pass an exported .onnx or .engine file.") from error
    shape: list[Any] = [metadata.get("batch", 1), metadata.get("channels", 3), *_pair(metadata.get("imgsz"))]
    if graph is not None:
        # What the graph takes counts more than what is said of it; a free axis is 0.
        sizes = input_shape(graph)
        shape = [fixed or said for fixed, said in zip(sizes, shape, strict=True)] if len(sizes) == 4 else shape
    outputs = _output_shapes(graph) if graph is not None else []
    batch, channels, height, width = shape
    names = metadata.get("names")
    settled = str(metadata.get("end2end", False)) == "True" or bool((metadata.get("args") or {}).get("nms"))
    return Exported(
        path=path,
        # Mask prototypes beside the anchors are those of a segmentation head, whatever the metadata says.
        task="segment" if [len(sizes) for sizes in outputs] == [3, 4] else metadata.get("task"),
        names={int(index): str(name) for index, name in names.items()} if isinstance(names, dict) else None,
        imgsz=None if not (height and width) else int(height) if height == width else (int(height), int(width)),
        stride=int(metadata.get("stride", 32)),
        channels=int(channels),
        batch=int(batch),
        decodes=bool(outputs) and not settled and isinstance(names, dict) and _has_queries(outputs[0], len(names)),
        settled=settled,
    )


def _output_shapes(graph: onnx.ModelProto) -> list[list[int]]:
    return [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.graph.output]


def _has_queries(sizes: list[int], classes: int) -> bool:
    """Whether what belongs to an object stands in the last axis, a row a query; anchors have it in the one before."""
    return len(sizes) == 3 and sizes[2] in (6, 4 + classes) and sizes[1] != 4 + classes


def _pair(imgsz: Any) -> tuple[Any, Any]:
    if isinstance(imgsz, (list, tuple)) and imgsz:
        return imgsz[0], imgsz[-1]
    return imgsz, imgsz
