# SPDX-License-Identifier: AGPL-3.0-or-later
"""Average precision by pycocotools: the official COCO table, and agreement with the float model."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ultra_mq.core import EvaluationError
from ultra_mq.prepare import match_images

REFERENCE_CONFIDENCE = 0.25
"""Float detections at or above this confidence are the ground truth of agreement: what a user would see drawn."""

IOUS = 10
"""Thresholds of AP50-95: IoU 0.50 to 0.95 in steps of 0.05."""


@dataclass(frozen=True)
class CocoTable:
    """The six AP figures of the COCO table, each in [0, 1], or -1 where no object is of that size."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float


@dataclass(frozen=True)
class Detections:
    """Boxes found in the evaluation images.

    Attributes:
        file_names: One image name a box, see ``Split.names``.
        classes: Class indices, shape (N,).
        boxes: Pixels of the original image, xywh with the top-left corner, shape (N, 4).
        scores: Confidences in [0, 1], shape (N,).
        images: Names of all images that were looked at, boxes or not.
        correct: Whether Ultralytics' validator matched a box to a label at IoU 0.50, 0.55, ... 0.95, shape (N, 10).
        label_images: One image name a label.
        label_classes: Class indices of the labels, shape (M,).
    """

    file_names: tuple[str, ...]
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    images: tuple[str, ...]
    correct: np.ndarray = field(default_factory=lambda: np.zeros((0, IOUS), bool))
    label_images: tuple[str, ...] = ()
    label_classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def score_coco(detections: Detections, annotations: Path, names: dict[int, str]) -> CocoTable:
    """Score detections against a COCO annotation file.

    Classes are matched by name, because COCO's 80 classes carry ids up to 90, and images by path or file name.

    Args:
        detections: Boxes to score.
        annotations: An ``instances_*.json`` file.
        names: Class index to class name.

    Raises:
        EvaluationError: A class of the model or an image is unknown to the annotation file.
    """
    truth = json.loads(annotations.read_text())
    ids = {category["name"]: category["id"] for category in truth["categories"]}
    missing = [name for name in names.values() if name not in ids]
    if missing:
        raise EvaluationError(
            f"'{annotations}' does not know the classes {', '.join(missing[:5])}. "
            f"Name the classes in the data YAML as the annotation file does."
        )
    image_ids = match_images(truth["images"], detections.images)
    if image_ids is None:
        raise EvaluationError(f"'{annotations}' does not describe all images. Remove it, or complete it.")
    results = [
        {"image_id": image_ids[file], "category_id": ids[names[int(cls)]], "bbox": box.tolist(), "score": float(score)}
        for file, cls, box, score in zip(
            detections.file_names, detections.classes, detections.boxes, detections.scores, strict=True
        )
    ]
    return _evaluate(truth, results, [image_ids[file] for file in detections.images])


def require_same_images(detections: Detections, reference: Detections) -> None:
    """Refuse to compare models that saw different images.

    Raises:
        EvaluationError: They did.
    """
    if detections.images != reference.images:
        raise EvaluationError(
            "Two models are compared on the same images, and these saw different ones. Evaluate both on the same data."
        )


def score_agreement(detections: Detections, reference: Detections) -> float:
    """AP50-95 of detections with the float model's own detections as ground truth.

    It needs no labels, and because both sides come from the same images it resolves differences that mAP on
    few images cannot.

    Args:
        detections: Boxes of the model under test, at all confidences.
        reference: Boxes of the float model; those of confidence 0.25 and more count as objects.

    Returns:
        Class-wise AP averaged over IoU 0.50 to 0.95, in [0, 1]; 1 for two sides without any box.

    Raises:
        EvaluationError: The two sides saw different images.
    """
    if not (reference.scores >= REFERENCE_CONFIDENCE).any():
        require_same_images(detections, reference)
        return float(not (detections.scores >= REFERENCE_CONFIDENCE).any())
    return _evaluate(*_agreement_problem(detections, reference)).ap


def match_agreement(detections: Detections, reference: Detections) -> Detections:
    """Detections matched to the float model's own by pycocotools, those as labels; what it drops is left out.

    Raises:
        EvaluationError: The two sides saw different images.
    """
    truth, results, ids = _agreement_problem(detections, reference)
    evaluation = _match(truth, results, ids) if results else None
    names = dict(enumerate(reference.images, start=1))
    files: list[str] = []
    classes: list[int] = []
    scores: list[float] = []
    correct = [np.zeros((0, IOUS), bool)]
    # One entry a class, range of areas and image; the first range is all areas.
    for found in evaluation.evalImgs if evaluation else ():
        if found is not None and found["aRng"] == [0, 1e10]:
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
    )


def _agreement_problem(
    detections: Detections, reference: Detections
) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """Ground truth, results and image ids for pycocotools."""
    require_same_images(detections, reference)
    ids = {file: index for index, file in enumerate(reference.images, start=1)}
    truth = {
        "info": {},
        "images": [{"id": index} for index in ids.values()],
        "categories": [{"id": int(cls)} for cls in np.unique(reference.classes)],
        "annotations": [
            {
                "id": number,
                "image_id": ids[reference.file_names[index]],
                "category_id": int(reference.classes[index]),
                "bbox": reference.boxes[index].tolist(),
                "area": float(reference.boxes[index][2] * reference.boxes[index][3]),
                "iscrowd": 0,
            }
            for number, index in enumerate(np.flatnonzero(reference.scores >= REFERENCE_CONFIDENCE), start=1)
        ],
    }
    results = [
        {"image_id": ids[file], "category_id": int(cls), "bbox": box.tolist(), "score": float(score)}
        for file, cls, box, score in zip(
            detections.file_names, detections.classes, detections.boxes, detections.scores, strict=True
        )
    ]
    return truth, results, list(ids.values())


def _evaluate(truth: dict[str, Any], results: list[dict[str, Any]], image_ids: list[int]) -> CocoTable:
    if not results:
        return CocoTable(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _match(truth, results, image_ids)
        evaluation.accumulate()
        evaluation.summarize()
    return CocoTable(*(float(value) for value in evaluation.stats[:6]))


def _match(truth: dict[str, Any], results: list[dict[str, Any]], image_ids: list[int]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **truth}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
    return evaluation
