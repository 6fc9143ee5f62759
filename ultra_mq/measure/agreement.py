# SPDX-License-Identifier: AGPL-3.0-or-later
"""Agreement with the float model: its own predictions as the truth.

It needs no labels, and because both sides come from the same images it resolves differences that mAP on few images
cannot.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ultra_mq.core import EvaluationError
from ultra_mq.measure.coco import average_precision, match, results
from ultra_mq.measure.predictions import IOUS, Classifications, Detections, Predictions, require_same_images

REFERENCE_CONFIDENCE = 0.25
"""Float detections at or above this confidence are the ground truth of agreement: what a user would see drawn."""

OKS_AREA = 0.53
"""Share of a box that its object fills, in Ultralytics' and COCO's keypoint similarity."""


def score_agreement(predictions: Predictions, reference: Predictions) -> float:
    """How much of what the float model says a model says too, in [0, 1].

    Args:
        predictions: Of the model under test; objects at all confidences.
        reference: Of the float model; its objects of confidence 0.25 and more count.

    Returns:
        Class-wise AP averaged over IoU 0.50 to 0.95 of boxes, masks, keypoints or rotated boxes, 1 for two sides
        without any object; of classifiers the share of images with the same class.

    Raises:
        EvaluationError: The two sides saw different images, or are of different tasks.
    """
    require_same_images(predictions, reference)
    if isinstance(predictions, Classifications) and isinstance(reference, Classifications):
        return float((predictions.classes == reference.classes).mean())
    if not isinstance(predictions, Detections) or not isinstance(reference, Detections):
        raise EvaluationError("A classifier and a detector have nothing to agree on. Compare models of one task.")
    _require_same_task(predictions, reference)
    if not (reference.scores >= REFERENCE_CONFIDENCE).any():
        return float(not (predictions.scores >= REFERENCE_CONFIDENCE).any())
    evaluation = _match(predictions, reference)
    return average_precision(evaluation) if evaluation else 0.0


def log_probability_shift(predictions: Classifications, reference: Classifications) -> float:
    """How far a classifier's confidence in the float model's class moves: mean change of its log-probability, in nats.

    Raises:
        EvaluationError: The two saw different images.
    """
    require_same_images(predictions, reference)
    rows = np.arange(len(reference.images))
    kinds = reference.classes
    moved = predictions.log_probabilities[rows, kinds] - reference.log_probabilities[rows, kinds]
    return float(np.abs(moved).mean())


def match_agreement(detections: Detections, reference: Detections) -> Detections:
    """Detections matched to the float model's own by pycocotools, those as labels; what it drops is left out.

    Raises:
        EvaluationError: The two sides saw different images.
    """
    require_same_images(detections, reference)
    _require_same_task(detections, reference)
    evaluation = _match(detections, reference)
    names = dict(enumerate(reference.images, start=1))
    files: list[str] = []
    classes: list[int] = []
    scores: list[float] = []
    correct = [np.zeros((0, IOUS), bool)]
    for found in evaluation.evalImgs if evaluation else ():
        if found is not None:
            files += [names[found["image_id"]]] * len(found["dtScores"])
            classes += [found["category_id"]] * len(found["dtScores"])
            scores += found["dtScores"]
            correct.append(np.asarray(found["dtMatches"]).T > 0)
    keep = np.flatnonzero(reference.scores >= REFERENCE_CONFIDENCE)
    return Detections(
        file_names=tuple(files),
        classes=np.array(classes, np.int64),
        boxes=np.zeros((len(files), 4)),
        scores=np.array(scores),
        images=detections.images,
        correct=np.concatenate(correct),
        label_images=tuple(reference.file_names[index] for index in keep),
        label_classes=reference.classes[keep],
        task=detections.task,
    )


def _require_same_task(detections: Detections, reference: Detections) -> None:
    if detections.task != reference.task:
        raise EvaluationError(
            f"A {detections.task} and a {reference.task} model have nothing to agree on. Compare models of one task."
        )


def _match(detections: Detections, reference: Detections) -> Any:
    """Detections matched to the reference's by pycocotools; None where there are none."""
    ids = {file: index for index, file in enumerate(reference.images, start=1)}
    found = results(detections, [ids[file] for file in detections.file_names], detections.classes.tolist())
    if not found:
        return None
    everything = results(reference, [ids[file] for file in reference.file_names], reference.classes.tolist())
    objects = [
        entry | _as_annotation(reference, index, number)
        for number, (index, entry) in enumerate(
            ((int(i), everything[i]) for i in np.flatnonzero(reference.scores >= REFERENCE_CONFIDENCE)), start=1
        )
    ]
    truth = {
        # pycocotools asks for sizes before it sees that the masks have their own.
        "images": [{"id": index, "height": 0, "width": 0} for index in ids.values()],
        "categories": [{"id": int(cls)} for cls in np.unique(reference.classes)],
        "annotations": objects,
    }
    return match(truth, found, list(ids.values()), detections.task, reference.sigmas)


def _as_annotation(reference: Detections, index: int, number: int) -> dict[str, Any]:
    """What an annotation has beside a result: its number, its area, and that all keypoints count."""
    box = reference.boxes[index]
    extra: dict[str, Any] = {"id": number, "area": float(box[2] * box[3]), "iscrowd": 0, "bbox": box.tolist()}
    if reference.task == "pose":
        points = reference.keypoints[index].copy()
        points[:, 2] = 2
        extra |= {"keypoints": points.ravel().tolist(), "num_keypoints": len(points), "area": OKS_AREA * extra["area"]}
    elif reference.task == "segment":
        from pycocotools import mask

        size, counts = reference.mask_sizes[index].tolist(), reference.masks[index]
        extra["area"] = float(mask.area({"size": size, "counts": counts}))
    return extra
