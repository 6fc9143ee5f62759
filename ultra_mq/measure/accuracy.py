# SPDX-License-Identifier: AGPL-3.0-or-later
"""How good an artefact is, as a value: the task's metrics, agreement, the predictions behind them, and their files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from ultra_mq.core import EvaluationError, write_text
from ultra_mq.measure.agreement import log_probability_shift, score_agreement
from ultra_mq.measure.coco import CocoTable
from ultra_mq.measure.predictions import Classifications, Predictions, load_predictions, save_predictions
from ultra_mq.measure.tasks import TASK_METRICS


@dataclass(frozen=True)
class Accuracy:
    """What the validator measured.

    Attributes:
        task: Ultralytics task.
        metrics: Ultralytics' figures by their own names, in [0, 1]; empty for data without labels.
        images: Number of images.
        coco: Official COCO table, where an annotation file belongs to the data.
        agreement: Agreement with the float model, see ``TASK_METRICS``; None for the float model itself.
        shift: Mean change of the log-probability of the float model's class in nats; for classifiers alone.
        predictions: What the model said, kept to compare with.
    """

    task: str
    metrics: dict[str, float]
    images: int
    coco: CocoTable | None
    agreement: float | None
    shift: float | None
    predictions: Predictions = field(repr=False)

    @property
    def main(self) -> float | None:
        """The figure that budgets count, in [0, 1], or None for data without labels."""
        return self.metrics.get(TASK_METRICS[self.task].main)

    @property
    def second(self) -> float | None:
        """The laxer figure beside it, or None for data without labels."""
        return self.metrics.get(TASK_METRICS[self.task].second)


def compare(accuracy: Accuracy, reference: Predictions) -> Accuracy:
    """Add the agreement with the float model's predictions."""
    shift = None
    if isinstance(reference, Classifications) and isinstance(accuracy.predictions, Classifications):
        shift = log_probability_shift(accuracy.predictions, reference)
    return replace(accuracy, agreement=score_agreement(accuracy.predictions, reference), shift=shift)


def points_lost(accuracy: Accuracy, reference: Accuracy, metric: Literal["map", "agreement"]) -> float:
    """Points of a metric that a model loses against the float one, which agrees with itself."""
    if metric == "agreement":
        return 100 * (1 - (1.0 if accuracy.agreement is None else accuracy.agreement))
    return 100 * ((reference.main or 0.0) - (accuracy.main or 0.0))


def save_accuracy(accuracy: Accuracy, folder: Path) -> None:
    """Write figures and predictions into a folder, which is made."""
    figures = asdict(replace(accuracy, predictions=None))  # type: ignore[arg-type]
    write_text(folder / "accuracy.json", json.dumps(figures))
    save_predictions(accuracy.predictions, folder / "predictions.npz")


def load_accuracy(folder: Path) -> Accuracy:
    """Read what ``save_accuracy`` wrote.

    Raises:
        EvaluationError: There is nothing, or it is damaged.
    """
    try:
        figures = json.loads((folder / "accuracy.json").read_text())
        predictions = load_predictions(folder / "predictions.npz")
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(
            f"'{folder}' does not hold the predictions of a model: {error}. Run the recipe again."
        ) from error
    coco = CocoTable(**figures["coco"]) if figures["coco"] else None
    return Accuracy(**{**figures, "coco": coco, "predictions": predictions})
