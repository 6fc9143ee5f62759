# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' validators and backend classes, extended: predictions kept, any runtime driven.

Imported only when something is evaluated, because it needs Ultralytics at import time.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from ultralytics.models.yolo.classify import ClassificationValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.utils import ops

from ultra_mq.measure.predictions import IOUS, Classifications, Detections
from ultra_mq.measure.tasks import TASK_METRICS

if TYPE_CHECKING:
    from ultra_mq.runtimes import Backend

SMALLEST_PROBABILITY = float(np.finfo(np.float16).tiny)


class _Recording:
    """Mixin for a validator of objects: it keeps its detections in memory; COCO scoring is left to ``coco.py``."""

    batch_images = 0
    image_names: dict[str, str]
    """Image file to what it is called in detections; set before the run."""
    full_masks = False
    """Whether masks are also made in pixels of the original image, which a COCO table needs and which takes time."""

    args: Any
    metrics: Any

    def init_metrics(self, model: nn.Module) -> None:
        """Start with no detections, beside Ultralytics' own metrics."""
        super().init_metrics(model)  # type: ignore[misc]
        self.images: list[str] = []
        self.found: list[dict[str, np.ndarray]] = []
        self.correct: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.masks: list[bytes] = []

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        """Record one batch in pixels of the original images."""
        super().update_metrics(preds, batch)  # type: ignore[misc]
        self.batch_images = len(preds)
        task = self.args.task
        for index, pred in enumerate(preds):
            self.images.append(self.image_names[str(batch["im_file"][index])])
            matched = index - len(preds)  # the validator has just appended this batch
            self.correct.append(self.metrics.stats[TASK_METRICS[task].correct][matched])
            self.labels.append(self.metrics.stats["target_cls"][matched])
            frame = {
                "imgsz": batch["img"].shape[2:],
                "ori_shape": batch["ori_shape"][index],
                "ratio_pad": batch["ratio_pad"][index],
            }
            self.found.append(self._in_original_pixels(pred, frame))

    def _in_original_pixels(self, pred: dict[str, torch.Tensor], frame: dict[str, Any]) -> dict[str, np.ndarray]:
        masks = pred["masks"] if self.args.task == "segment" else None
        scaled = self.scale_preds(pred, frame) if len(pred["cls"]) else pred  # type: ignore[attr-defined]
        kept = {"boxes": scaled["bboxes"], "cls": scaled["cls"], "conf": scaled["conf"]}
        if self.args.task == "pose":
            kept["keypoints"] = scaled["keypoints"]
        arrays = {name: value.float().cpu().numpy() for name, value in kept.items()}
        if masks is not None:
            arrays["mask_sizes"] = np.tile(np.array(masks.shape[1:], np.int64), (len(masks), 1))
            self.masks += _encode(masks)
        return arrays

    def predictions(self) -> Detections:
        """Everything recorded since the run began."""
        task = self.args.task
        boxes = self._joined("boxes", (5 if task == "obb" else 4,)).astype(np.float64)
        angles = np.zeros(0)
        if task == "obb":
            angles, boxes = boxes[:, 4], boxes[:, :4].copy()
            boxes[:, :2] -= boxes[:, 2:] / 2
        else:
            boxes[:, 2:] -= boxes[:, :2]
        keypoints = np.zeros((0, 0, 3))
        if task == "pose":
            keypoints = self._joined("keypoints", tuple(self.kpt_shape)).astype(np.float64)  # type: ignore[attr-defined]
            if keypoints.shape[2] == 2:
                keypoints = np.concatenate([keypoints, np.ones((*keypoints.shape[:2], 1))], axis=2)
        return Detections(
            file_names=tuple(name for name, found in zip(self.images, self.found, strict=True) for _ in found["cls"]),
            classes=self._joined("cls", ()).astype(np.int64),
            boxes=boxes,
            scores=self._joined("conf", ()).astype(np.float64),
            images=tuple(self.images),
            correct=np.concatenate([*self.correct, np.zeros((0, IOUS), bool)]).astype(bool),
            label_images=tuple(name for name, found in zip(self.images, self.labels, strict=True) for _ in found),
            label_classes=np.concatenate([*self.labels, np.zeros(0)]).astype(np.int64),
            task=task,
            angles=angles,
            keypoints=keypoints,
            sigmas=np.asarray(self.sigma, np.float64) if task == "pose" else np.zeros(0),  # type: ignore[attr-defined]
            masks=tuple(self.masks),
            mask_sizes=self._joined("mask_sizes", (2,)).astype(np.int64)
            if task == "segment"
            else np.zeros((0, 2), int),
        )

    def full_predictions(self) -> Detections:
        """What a COCO table takes."""
        return self.predictions()

    def _joined(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        parts = [found[name].reshape(-1, *shape) for found in self.found]
        return np.concatenate([*parts, np.zeros((0, *shape), np.float32)])


class RecordingValidator(_Recording, DetectionValidator):  # type: ignore[misc]
    """Validates a detector."""


class RecordingSegmentationValidator(_Recording, SegmentationValidator):  # type: ignore[misc]
    """Validates a segmentation model."""

    # Masks stay as the validator has them: both sides of an agreement are letterboxed alike.
    scale_preds = DetectionValidator.scale_preds

    def init_metrics(self, model: nn.Module) -> None:
        """Start with no masks of the original size."""
        super().init_metrics(model)
        self.large: list[torch.Tensor] = []
        self.full: list[bytes] = []
        self.full_sizes: list[np.ndarray] = []
        if self.full_masks:
            self.process = self._masks_twice

    def _masks_twice(self, protos: torch.Tensor, coefficients: torch.Tensor, boxes: torch.Tensor, shape: Any) -> Any:
        """Masks at the validator's resolution, and at the image's beside them."""
        self.large.append(ops.process_mask_native(protos, coefficients, boxes, shape))
        return ops.process_mask(protos, coefficients, boxes, shape)

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        """Record one batch, and its masks in pixels of the original images."""
        super().update_metrics(preds, batch)
        for index, masks in enumerate(self.large):
            shape = batch["ori_shape"][index]
            if len(masks):
                scaled = ops.scale_masks(masks[None].float(), shape, ratio_pad=batch["ratio_pad"][index])[0]
                self.full += _encode(scaled > 0.5)
            self.full_sizes.append(np.tile(np.array(shape, np.int64), (len(masks), 1)))
        self.large = []

    def full_predictions(self) -> Detections:
        """What was recorded, with masks in pixels of the original images."""
        sizes = np.concatenate([*self.full_sizes, np.zeros((0, 2), np.int64)])
        return replace(self.predictions(), masks=tuple(self.full), mask_sizes=sizes)


class RecordingPoseValidator(_Recording, PoseValidator):  # type: ignore[misc]
    """Validates a pose model."""


class RecordingOBBValidator(_Recording, OBBValidator):  # type: ignore[misc]
    """Validates a detector of oriented boxes."""


class RecordingClassificationValidator(ClassificationValidator):  # type: ignore[misc]
    """Validates a classifier and keeps its probabilities."""

    batch_images = 0
    image_names: dict[str, str]
    full_masks = False

    def init_metrics(self, model: nn.Module) -> None:
        """Start with no predictions, beside Ultralytics' own."""
        super().init_metrics(model)
        self.rows: list[np.ndarray] = []

    def update_metrics(self, preds: torch.Tensor, batch: dict[str, Any]) -> None:
        """Record one batch."""
        super().update_metrics(preds, batch)
        self.batch_images = len(preds)
        self.rows.append(preds.float().clamp(min=SMALLEST_PROBABILITY).log().cpu().numpy())

    def predictions(self) -> Classifications:
        """Everything recorded since the run began."""
        return Classifications(
            images=tuple(self.image_names.values()),
            log_probabilities=np.concatenate(self.rows),
            labels=torch.cat(self.targets).numpy().astype(np.int64),
        )


VALIDATORS: dict[str, Any] = {
    "detect": RecordingValidator,
    "segment": RecordingSegmentationValidator,
    "pose": RecordingPoseValidator,
    "obb": RecordingOBBValidator,
    "classify": RecordingClassificationValidator,
}


def _encode(masks: torch.Tensor) -> list[bytes]:
    from pycocotools import mask

    pixels = masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return [found["counts"] for found in mask.encode(np.asfortranarray(pixels))]


class RuntimeBackend(BaseBackend):  # type: ignore[misc]
    """Ultralytics' backend interface on top of one of our runtimes.

    Args:
        runtime: Open runtime that does the inference.
        weight: Path that Ultralytics passes; the runtime has it open already.
        device: Torch device that the validator works on.
        fp16: Passed by Ultralytics; the runtime's file decides its own precision.
    """

    def __init__(self, runtime: Backend, weight: str | Path, device: torch.device, fp16: bool = False) -> None:
        self.runtime = runtime
        super().__init__(weight, device, fp16=False)

    def load_model(self, weight: str | Path) -> None:
        """Take over the runtime's metadata."""
        self.model = self.runtime
        self.apply_metadata(dict(self.runtime.metadata))

    def forward(self, im: torch.Tensor) -> list[np.ndarray]:
        """Run one batch, shape (B, C, H, W) in [0, 1]."""
        return self.runtime.infer(im.float().cpu().numpy())
