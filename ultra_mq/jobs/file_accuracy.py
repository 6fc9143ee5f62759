# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files that were exported already, validated on the same data, each against the first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from ultra_mq.core import BackendError, UltraMQError
from ultra_mq.jobs.exported_data import data_of, described
from ultra_mq.measure import Accuracy, compare, evaluate
from ultra_mq.prepare import Data, gpu_index
from ultra_mq.runtimes import CpuRuntime, open_file, read_exported
from ultra_mq.session import Recipe


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

    Args:
        paths: ONNX files and engines, the reference first.
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
            exported = read_exported(path)
            if exported.decodes:
                raise BackendError(
                    f"'{path}' ends in a transformer decoder (RT-DETR), whose outputs are not compared here. "
                    f"Validate it with Ultralytics: RTDETR('{path}').val(data=...)."
                )
            kind = repr(replace(exported, path=Path(), batch=1))
            if kind not in scanned:
                scanned[kind] = data_of(exported, recipe, task)
            data[path] = scanned[kind]
            with closing(open_file(path, trt_python, runtime=runtime, device=gpu)) as backend:
                made = evaluate(described(backend, data[path]), data[path], label=f"Evaluating {path.name}")
        except UltraMQError as error:  # noqa: PERF203
            if path == paths[0]:
                raise
            errors.append(str(error))
        else:
            first = next(iter(measured.values()), made)
            measured[path] = compare(made, first.predictions) if made.task == first.task else made
    return FileAccuracies(measured, data, tuple(errors))
