# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two artefacts side by side: which classes part, and pictures in which it can be seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ultra_mq.core import BackendError, versions, write_text
from ultra_mq.jobs.file_accuracy import evaluate_files
from ultra_mq.jobs.pipeline import make_run_folder
from ultra_mq.measure import TASK_METRICS, Accuracy, ClassLoss, Drop, bootstrap_classes
from ultra_mq.report import (
    ClassTable,
    Page,
    Picture,
    draw_gallery,
    picture_legend,
    points,
    points_text,
    share,
    write_classes,
    write_page,
)
from ultra_mq.runtimes import CpuRuntime
from ultra_mq.session import Metric, Recipe


@dataclass(frozen=True)
class Diff:
    """What one artefact does otherwise than another.

    Attributes:
        folder: Where page, tables and pictures are.
        before: The file that is compared with.
        after: The file under test.
        task: Ultralytics task.
        images: Number of images.
        losses: Points that ``after`` loses, of the task's metric where there are labels, and of agreement.
        class_losses: The same for every class, the largest first.
        pictures: Images on which they part most, and an even sample.
    """

    folder: Path
    before: Path
    after: Path
    task: str
    images: int
    losses: dict[Metric, Drop]
    class_losses: dict[Metric, tuple[ClassLoss, ...]]
    pictures: tuple[Picture, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "folder": str(self.folder), "before": str(self.before), "after": str(self.after)}


def diff_files(
    before: Path,
    after: Path,
    recipe: Recipe,
    *,
    task: str | None = None,
    runtime: CpuRuntime = "onnxruntime",
    trt_python: str | None = None,
) -> Diff:
    """Compare two artefacts on the images of a recipe, and write what was found as a page that stands alone.

    Args:
        before: ONNX file or engine to compare with.
        after: ONNX file or engine under test.
        recipe: Names the data, the folder, the device and how many pictures are drawn.
        task: Task of files that do not say theirs.
        runtime: What runs ONNX files.
        trt_python: Python that has TensorRT.

    Raises:
        BackendError: One of them cannot be run, or they are of different tasks.
        ReportError: There is no image to draw.
    """
    found = evaluate_files([before, after], recipe, task=task, runtime=runtime, trt_python=trt_python)
    if found.errors:
        raise BackendError(" ".join(found.errors))
    base, model = found.accuracies[before], found.accuracies[after]
    if base.task != model.task:
        raise BackendError(
            f"'{before}' is a {base.task} model and '{after}' a {model.task} model. Compare two of one task."
        )
    data = found.data[before]
    metrics: Sequence[Metric] = ("agreement",) if base.main is None else ("map", "agreement")
    both = {metric: bootstrap_classes(model, base, metric, data.names) for metric in metrics}
    folder = make_run_folder(recipe, base.task)
    count = recipe.evaluation.pictures
    drawn = draw_gallery(model.predictions, base.predictions, data.evaluation.names, data.names, folder, count)
    diff = Diff(
        folder,
        before,
        after,
        base.task,
        base.images,
        {metric: loss for metric, (loss, _) in both.items()},
        {metric: classes for metric, (_, classes) in both.items()},
        drawn,
    )
    _write(diff, base, model, recipe)
    return diff


def class_tables(diff: Diff) -> list[ClassTable]:
    """The losses by class."""
    return [
        ClassTable(diff.after.name, _words(diff, metric), classes, ("before", "after"))
        for metric, classes in diff.class_losses.items()
        if classes
    ]


def _words(diff: Diff, metric: Metric) -> str:
    return TASK_METRICS[diff.task].title if metric == "map" else f"agreement with {diff.before.name}"


def _write(diff: Diff, base: Accuracy, model: Accuracy, recipe: Recipe) -> None:
    metrics = TASK_METRICS[base.task]
    verdicts = [
        f"{diff.after.name} loses {points_text(loss)} points of {_words(diff, metric)}, 95 %."
        for metric, loss in diff.losses.items()
    ]
    tables = class_tables(diff)
    rows = [
        (path.name, points(one.main), points(one.second), share(one.agreement))
        for path, one in ((diff.before, base), (diff.after, model))
    ]
    page = Page(
        title=f"{diff.after.name} against {diff.before.name}",
        subtitle=f"{diff.images} images of {Path(recipe.data).name}; {base.task}.",
        verdicts=verdicts,
        columns=("file", metrics.title, metrics.second_title, "agreement"),
        rows=rows,
        marked=diff.after.name,
        classes=tables,
        pictures=diff.pictures,
        legend=picture_legend(diff.before.name, diff.after.name),
        versions=versions(),
    )
    write_classes(diff.folder / "classes.csv", tables)
    write_text(diff.folder / "diff.json", json.dumps(diff.to_dict(), indent=2))
    write_page(page, diff.folder, "diff.html")
