# SPDX-License-Identifier: AGPL-3.0-or-later
"""``export``: what ``YOLO.export`` is, with budgets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultra_mq.core import BackendError, ModelError, RecipeError
from ultra_mq.jobs.api import autoquant

if TYPE_CHECKING:
    from torch import nn

FORMATS = ("onnx", "engine")


def export(model: nn.Module | str | Path, format: str = "onnx", **settings: Any) -> str:
    """Quantize a checkpoint under budgets and return the file, as ``YOLO.export`` does.

    Args:
        model: ``.pt`` weights, or a ``YOLO`` that was loaded from some.
        format: ``engine`` for TensorRT, or ``onnx``: a Q/DQ graph.
        **settings: Arguments of ``autoquant``: budgets such as ``max_drop=0.5``, ``data``, and keys of a recipe.

    Returns:
        Path of the file; it carries Ultralytics' metadata, so that ``YOLO(path)`` runs it. The report lies beside it.

    Raises:
        RecipeError: The format is unknown.
        BackendError: No engine could be built here.
        UltraMQError: The input cannot be used.

    Examples:
        >>> ultra_mq.export("yolo11n.pt", format="engine", max_drop=0.5, data="coco128.yaml")
    """
    if format not in FORMATS:
        raise RecipeError(
            f"format='{format}' is unknown here. Use one of {', '.join(FORMATS)}; YOLO.export has others."
        )
    weights = model if isinstance(model, (str, Path)) else getattr(model, "ckpt_path", None)
    if not weights:
        raise ModelError("It is not known which checkpoint this model was loaded from. Pass the path of its .pt file.")
    if format == "engine":
        settings["engine"] = {"target": "tensorrt", **settings.get("engine", {})}
    report = autoquant(weights, **settings)
    made = report.variants[-1]
    if format == "onnx":
        return str(report.folder / made.onnx)
    if made.engine is None:
        raise BackendError(
            f"The engine was not built: {made.engine_error}. The ONNX file is {report.folder / made.onnx}."
        )
    return str(made.engine.path)
