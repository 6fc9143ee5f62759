# SPDX-License-Identifier: AGPL-3.0-or-later
"""Average precision by pycocotools, of boxes, masks, keypoints and rotated boxes; and the official COCO table."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultra_mq.core import EvaluationError
from ultra_mq.measure.predictions import Detections
from ultra_mq.prepare import match_images

KINDS = {"detect": "bbox", "obb": "bbox", "segment": "segm", "pose": "keypoints"}
"""What pycocotools compares for a task."""

OFFICIAL_POSES = 20
"""Poses of an image that count in the official table, whose summary asks for this number."""


@dataclass(frozen=True)
class CocoTable:
    """The AP figures of the COCO table, each in [0, 1], or -1 where no object is of that size.

    Keypoints have no small objects.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float


def score_coco(detections: Detections, annotations: Path, names: dict[int, str]) -> CocoTable:
    """Score detections against a COCO annotation file.

    Classes are matched by name, because COCO's 80 classes carry ids up to 90, and images by path or file name.

    Args:
        detections: Objects to score, masks in pixels of the original image.
        annotations: An ``instances_*.json`` or ``person_keypoints_*.json`` file that knows all classes.
        names: Class index to class name.

    Raises:
        EvaluationError: An image is unknown to the annotation file.
    """
    truth = json.loads(annotations.read_text())
    ids = {category["name"]: category["id"] for category in truth["categories"]}
    image_ids = match_images(truth["images"], detections.images)
    if image_ids is None:
        raise EvaluationError(f"'{annotations}' does not describe all images. Remove it, or complete it.")
    categories = [ids[names[int(cls)]] for cls in detections.classes]
    found = results(detections, [image_ids[file] for file in detections.file_names], categories)
    if not found:
        return CocoTable(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    images = [image_ids[file] for file in detections.images]
    evaluation = match(truth, found, images, detections.task, poses=OFFICIAL_POSES, by_size=True)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    stats = [float(value) for value in evaluation.stats]
    return CocoTable(*stats[:3], *((-1.0, *stats[3:5]) if detections.task == "pose" else stats[3:6]))


def results(detections: Detections, image_ids: Sequence[Any], categories: Sequence[int]) -> list[dict[str, Any]]:
    """Detections as pycocotools takes them, a dictionary each.

    Args:
        detections: Objects.
        image_ids: Id of each object's image.
        categories: Category of each object.
    """
    found: list[dict[str, Any]] = []
    for index, (image, category) in enumerate(zip(image_ids, categories, strict=True)):
        entry = {
            "image_id": image,
            "category_id": int(category),
            "bbox": detections.boxes[index].tolist(),
            "score": float(detections.scores[index]),
        }
        if detections.task == "segment":
            entry["segmentation"] = {"size": detections.mask_sizes[index].tolist(), "counts": detections.masks[index]}
            del entry["bbox"]  # it would be taken in place of the mask
        elif detections.task == "pose":
            entry["keypoints"] = detections.keypoints[index].ravel().tolist()
        elif detections.task == "obb":
            entry["angle"] = float(detections.angles[index])
        found.append(entry)
    return found


def match(
    truth: dict[str, Any],
    found: list[dict[str, Any]],
    image_ids: list[Any],
    task: str,
    sigmas: np.ndarray | None = None,
    poses: int = 300,
    *,
    by_size: bool = False,
) -> Any:
    """Objects matched to the truth by pycocotools; ``evalImgs`` of the answer has the matches.

    Args:
        truth: Images, categories and annotations in COCO's form.
        found: What ``results`` makes.
        image_ids: Images to look at.
        task: Ultralytics task.
        sigmas: Spread of each keypoint; COCO's own 17 by default.
        poses: Poses of an image that count.
        by_size: Whether small, medium and large objects are matched apart too, four matchings in place of one.
    """
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **truth}
        coco.createIndex()
        kind = _rotated_evaluation() if task == "obb" else _plain_evaluation()
        evaluation = kind(coco, coco.loadRes(found), KINDS[task])
        evaluation.params.imgIds = image_ids
        if not by_size:
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        if task == "pose":
            evaluation.params.maxDets = [poses]
            if sigmas is not None and len(sigmas):
                evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
    return evaluation


def average_precision(evaluation: Any) -> float:
    """AP50-95 over all classes and areas of a matched evaluation, in [0, 1]."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else 0.0


def _plain_evaluation() -> Any:
    from pycocotools.cocoeval import COCOeval

    return COCOeval


@functools.cache
def _rotated_evaluation() -> Any:
    """COCOeval with Ultralytics' IoU of rotated boxes, which pycocotools does not know."""
    import torch
    from pycocotools.cocoeval import COCOeval
    from ultralytics.utils.metrics import batch_probiou

    class RotatedEvaluation(COCOeval):  # type: ignore[misc]
        def computeIoU(self, imgId: Any, catId: Any) -> Any:  # noqa: N802, N803
            truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
            if not truth and not found:
                return []
            order = np.argsort([-entry["score"] for entry in found], kind="mergesort")
            found = [found[index] for index in order[: self.params.maxDets[-1]]]
            if not truth or not found:
                return np.zeros((len(found), len(truth)))
            one, other = (torch.tensor([_rotated(entry) for entry in side]) for side in (found, truth))
            return batch_probiou(one, other).double().numpy()

    return RotatedEvaluation


def _rotated(entry: dict[str, Any]) -> list[float]:
    """Centre, width, height and angle of a result or an annotation."""
    x, y, width, height = entry["bbox"]
    return [x + width / 2, y + height / 2, width, height, entry["angle"]]
