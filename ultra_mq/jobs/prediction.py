# SPDX-License-Identifier: AGPL-3.0-or-later
"""Any artefact through Ultralytics' own predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultra_mq.core import BackendError, quiet
from ultra_mq.jobs.exported_data import take_task
from ultra_mq.runtimes import engine_target, read_exported
from ultra_mq.session import apply_override

if TYPE_CHECKING:
    from ultralytics.engine.results import Results


def predict_file(path: Path, overrides: list[str]) -> list[Results]:
    """Predict with a checkpoint, an ONNX file or a TensorRT engine, and save the pictures, as ``yolo predict`` does.

    Args:
        path: The artefact.
        overrides: Ultralytics' settings, ``source=`` among them; ``task=`` for a file that does not say its own.

    Raises:
        BackendError: It cannot be run, or Ultralytics refuses a setting or the source.
    """
    task, rest = take_task(overrides)
    settings: dict[str, Any] = {}
    for override in rest:
        apply_override(settings, override)
    if not settings.get("source"):
        raise BackendError("There is nothing to predict on. Add source=image.jpg, a folder, a video or a URL.")
    if path.suffix == ".engine" and engine_target(path) == "rtx":
        raise BackendError(f"'{path}' is an engine of TensorRT-RTX, which Ultralytics does not run. Use the ONNX file.")
    if path.suffix != ".pt":
        exported = read_exported(path)
        task = task or exported.task
        if exported.imgsz is not None:
            size = exported.imgsz
            settings.setdefault("imgsz", list(size) if isinstance(size, tuple) else size)
    elif not path.is_file():
        raise BackendError(f"'{path}' does not exist. Pass a .pt, .onnx or .engine file.")
    from ultralytics import YOLO

    try:
        with quiet():
            return list(YOLO(path, task=task).predict(**{"save": True, **settings}))
    except Exception as error:  # Ultralytics raises whatever its runtimes do
        raise BackendError(f"Ultralytics could not predict with '{path}': {' '.join(str(error).split())}") from error
