# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checkpoints, ONNX files and engines, validated on the same data, each against the first."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ultra_mq.core import BackendError, UltraMQError, quiet
from ultra_mq.jobs.exported_data import data_of, described
from ultra_mq.measure import Accuracy, compare, evaluate
from ultra_mq.prepare import Data, ImageSize, channels_of, gpu_index, torch_device
from ultra_mq.runtimes import CpuRuntime, Exported, open_file, read_exported
from ultra_mq.session import Recipe

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class FileAccuracies:
    """What files reach on the same data.

    Attributes:
        accuracies: File to accuracy, the reference first; those of its task have the agreement with it.
        data: File to the data as it takes them.
        errors: Why files have none.
    """

    accuracies: dict[Path, Accuracy]
    data: dict[Path, Data]
    errors: tuple[str, ...]


def evaluate_files(
    paths: Sequence[Path],
    recipe: Recipe,
    *,
    task: str | None = None,
    runtime: CpuRuntime = "onnxruntime",
    trt_python: str | None = None,
) -> FileAccuracies:
    """Validate files with Ultralytics' validator; what fails is said, and the others go on.

    Checkpoints take the image size of the first file that has one, where the recipe names none.

    Args:
        paths: ``.pt`` checkpoints, ONNX files and engines, the reference first.
        recipe: Names the data, its fraction and the device.
        task: Task of files that do not say theirs.
        runtime: What runs ONNX files.
        trt_python: Python that has TensorRT.

    Raises:
        UltraMQError: The reference cannot be evaluated.
    """
    gpu = gpu_index(recipe.device)
    measured: dict[Path, Accuracy] = {}
    data: dict[Path, Data] = {}
    scanned: dict[str, Data] = {}
    errors = []
    for path in paths:
        try:
            exported, module = _read(path)
            if exported.decodes:
                raise BackendError(
                    f"'{path}' ends in a transformer decoder (RT-DETR), whose outputs are not compared here. "
                    f"Validate it with Ultralytics: RTDETR('{path}').val(data=...)."
                )
            if module is not None:
                exported = replace(exported, imgsz=_fixed_size(paths))
            kind = repr(replace(exported, path=Path(), batch=1))
            if kind not in scanned:
                scanned[kind] = data_of(exported, recipe, task)
            data[path] = scanned[kind]
            label = f"Evaluating {path.name}"
            if module is not None:
                made = evaluate(module, data[path], label=label, device=torch_device(recipe.device))
            else:
                with closing(open_file(path, trt_python, runtime=runtime, device=gpu)) as backend:
                    made = evaluate(described(backend, data[path]), data[path], label=label)
        except UltraMQError as error:  # noqa: PERF203
            if path == paths[0]:
                raise
            errors.append(str(error))
        else:
            first = next(iter(measured.values()), made)
            measured[path] = compare(made, first.predictions) if made.task == first.task else made
    return FileAccuracies(measured, data, tuple(errors))


def _fixed_size(paths: Sequence[Path]) -> ImageSize | None:
    """The image size of the first exported file that has one."""
    for path in paths:
        with contextlib.suppress(UltraMQError):  # said where the file itself is evaluated
            if path.suffix != ".pt" and (size := read_exported(path).imgsz):
                return size
    return None


def _read(path: Path) -> tuple[Exported, nn.Module | None]:
    """What a file says of itself, and the network of a checkpoint."""
    if path.suffix != ".pt":
        return read_exported(path), None
    if not path.is_file():
        raise BackendError(f"'{path}' does not exist. Pass a .pt, .onnx or .engine file.")
    from ultralytics import YOLO

    try:
        with quiet():
            yolo = YOLO(path)
    except Exception as error:  # pickle and Ultralytics raise many kinds
        raise BackendError(f"'{path}' is no checkpoint of Ultralytics: {' '.join(str(error).split())[:200]}") from error
    network = yolo.model
    stride = int(max(getattr(network, "stride", [32])))
    return Exported(path, yolo.task, dict(yolo.names), None, stride, channels_of(network), 1), network.eval()
