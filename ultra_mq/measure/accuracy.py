# SPDX-License-Identifier: AGPL-3.0-or-later
"""How good an artefact is, as a value: mAP, agreement, the detections behind them, and their files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ultra_mq.core import EvaluationError, atomic_path, write_text
from ultra_mq.measure.coco import CocoTable, Detections, score_agreement


@dataclass(frozen=True)
class Accuracy:
    """What the validator measured.

    Attributes:
        map50_95: Ultralytics' mAP50-95 in [0, 1], or None for data without labels.
        map50: Ultralytics' mAP50 in [0, 1], or None for data without labels.
        images: Number of images.
        coco: Official COCO table, where an annotation file belongs to the data.
        agreement: AP50-95 with the float model's detections as ground truth; None for the float model itself.
        detections: The boxes, kept to compare with.
    """

    map50_95: float | None
    map50: float | None
    images: int
    coco: CocoTable | None
    agreement: float | None
    detections: Detections = field(repr=False)


@dataclass(frozen=True)
class Parity:
    """The same model in torch and as ONNX, on the same images.

    Attributes:
        map50_95: mAP50-95 of fake-quantized torch and of the ONNX file, or None without labels.
        agreement: Agreement of both with the float model.
        gap: Largest distance of the two pairs.
        limit: Largest distance allowed.
    """

    map50_95: tuple[float, float] | None
    agreement: tuple[float, float]
    gap: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether torch and ONNX are the same model."""
        return self.gap <= self.limit


def compare(accuracy: Accuracy, reference: Detections) -> Accuracy:
    """Add the agreement with the float model's detections."""
    return replace(accuracy, agreement=score_agreement(accuracy.detections, reference))


def points_lost(accuracy: Accuracy, reference: Accuracy, metric: Literal["map", "agreement"]) -> float:
    """Points of a metric that a model loses against the float one, which agrees with itself."""
    if metric == "agreement":
        return 100 * (1 - (1.0 if accuracy.agreement is None else accuracy.agreement))
    return 100 * ((reference.map50_95 or 0.0) - (accuracy.map50_95 or 0.0))


def check_parity(torch_accuracy: Accuracy, onnx_accuracy: Accuracy, limit: float) -> Parity:
    """Hold the fake-quantized torch model against its ONNX file.

    Args:
        torch_accuracy: Accuracy of the torch module, with agreement.
        onnx_accuracy: Accuracy of the ONNX file, with agreement.
        limit: Largest distance allowed in mAP50-95 and in agreement, in [0, 1].
    """
    if torch_accuracy.agreement is None or onnx_accuracy.agreement is None:
        raise EvaluationError("Parity needs the agreement of both sides; call compare() on each first.")
    agreement = (torch_accuracy.agreement, onnx_accuracy.agreement)
    pairs = [agreement]
    map50_95 = None
    if torch_accuracy.map50_95 is not None and onnx_accuracy.map50_95 is not None:
        map50_95 = (torch_accuracy.map50_95, onnx_accuracy.map50_95)
        pairs.append(map50_95)
    return Parity(map50_95, agreement, max(abs(a - b) for a, b in pairs), limit)


def save_accuracy(accuracy: Accuracy, folder: Path) -> None:
    """Write figures and detections into a folder, which is made."""
    figures = asdict(replace(accuracy, detections=None))  # type: ignore[arg-type]
    found = accuracy.detections
    numbers = {name: number for number, name in enumerate(found.images)}
    write_text(folder / "accuracy.json", json.dumps(figures))
    with atomic_path(folder / "detections.npz") as temporary:
        np.savez_compressed(
            temporary,
            files=np.array([numbers[name] for name in found.file_names], dtype=np.int32),
            classes=found.classes,
            boxes=found.boxes,
            scores=found.scores,
            images=np.array(found.images),
            correct=found.correct,
            label_files=np.array([numbers[name] for name in found.label_images], dtype=np.int32),
            label_classes=found.label_classes,
        )


def load_accuracy(folder: Path) -> Accuracy:
    """Read what ``save_accuracy`` wrote.

    Raises:
        EvaluationError: There is nothing, or it is damaged.
    """
    try:
        figures = json.loads((folder / "accuracy.json").read_text())
        with np.load(folder / "detections.npz") as arrays:
            images = tuple(str(name) for name in arrays["images"])
            detections = Detections(
                file_names=tuple(images[index] for index in arrays["files"]),
                classes=arrays["classes"],
                boxes=arrays["boxes"],
                scores=arrays["scores"],
                images=images,
                correct=arrays["correct"],
                label_images=tuple(images[index] for index in arrays["label_files"]),
                label_classes=arrays["label_classes"],
            )
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(
            f"'{folder}' does not hold the detections of a model: {error}. Run the recipe again."
        ) from error
    coco = CocoTable(**figures["coco"]) if figures["coco"] else None
    return Accuracy(**{**figures, "coco": coco, "detections": detections})
