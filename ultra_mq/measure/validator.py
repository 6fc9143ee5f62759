# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' validator and backend classes, extended: detections kept, any runtime driven.

Imported only when something is evaluated, because it needs Ultralytics at import time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.backends.base import BaseBackend

from ultra_mq.measure.coco import IOUS, Detections

if TYPE_CHECKING:
    from ultra_mq.runtimes import Backend


class RecordingValidator(DetectionValidator):  # type: ignore[misc]
    """Ultralytics' validator that keeps its detections in memory; COCO scoring is left to ``coco.py``."""

    batch_images = 0
    image_names: dict[str, str]
    """Image file to what it is called in detections; set before the run."""

    def init_metrics(self, model: nn.Module) -> None:
        """Start with no detections, beside Ultralytics' own metrics."""
        super().init_metrics(model)
        self.rows: list[tuple[str, np.ndarray]] = []
        self.images: list[str] = []
        self.correct: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        """Record one batch in pixels of the original images."""
        super().update_metrics(preds, batch)
        self.batch_images = len(preds)
        for index, pred in enumerate(preds):
            prepared = self._prepare_batch(index, batch)
            name = self.image_names[str(prepared["im_file"])]
            self.images.append(name)
            matched = index - len(preds)  # the validator has just appended this batch
            self.correct.append(self.metrics.stats["tp"][matched])
            self.labels.append(self.metrics.stats["target_cls"][matched])
            if len(pred["cls"]):
                scaled = self.scale_preds(self._prepare_pred(pred), prepared)
                columns = [scaled["cls"][:, None], scaled["bboxes"], scaled["conf"][:, None]]
                self.rows.append((name, torch.cat([c.float().cpu() for c in columns], dim=1).numpy()))

    def detections(self) -> Detections:
        """Everything recorded since the run began."""
        table = np.concatenate([rows for _, rows in self.rows]) if self.rows else np.zeros((0, 6), np.float32)
        boxes = table[:, 1:5].astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        return Detections(
            file_names=tuple(name for name, rows in self.rows for _ in range(len(rows))),
            classes=table[:, 0].astype(np.int64),
            boxes=boxes,
            scores=table[:, 5].astype(np.float64),
            images=tuple(self.images),
            correct=np.concatenate([*self.correct, np.zeros((0, IOUS), bool)]).astype(bool),
            label_images=tuple(name for name, found in zip(self.images, self.labels, strict=True) for _ in found),
            label_classes=np.concatenate([*self.labels, np.zeros(0)]).astype(np.int64),
        )


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
        """Run one batch, shape (B, 3, H, W) in [0, 1]."""
        return self.runtime.infer(im.float().cpu().numpy())
