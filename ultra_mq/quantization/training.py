# SPDX-License-Identifier: AGPL-3.0-or-later
"""Quantization-aware training with Ultralytics' own trainers, quantizers and all.

Ultralytics' trainer builds a fresh network from the YAML and copies the weights that match, which loses the quantizers
and the fused convolutions. The trainers here take the quantized network as it is: at the start, on resuming, and in
every process of a multi-GPU run, to which Ultralytics hands the trainer's class.

Imported only when something is trained, because it needs Ultralytics at import time.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.torch_utils import is_qat, unwrap_model

from ultra_mq.quantization.distillation import OutputDistillation
from ultra_mq.quantization.guards import check_training

QAT: dict[str, Any] = {
    "epochs": 10,
    # "auto" would choose the learning rate itself, a hundred times too high for a network that is trained already.
    "optimizer": "AdamW",
    "lr0": 1e-5,
    "lrf": 0.01,
    "cos_lr": True,
    "warmup_epochs": 0,
    # Mosaics are unlike what the ranges were calibrated on, and there is no time to get used to real images again.
    "mosaic": 0.0,
    "amp": False,
    # Calibration sets are small: step after every batch, not after 64 images.
    "nbs": 16,
}
"""Settings for ``model.train(data=..., **QAT)``: few epochs at a rate that leaves trained weights where they are,
decaying by a cosine (the schedule of NVIDIA, "Achieving FP32 Accuracy for INT8 Inference Using Quantization Aware
Training with TensorRT", 2021; the rate from ``docs/results/placement.md``, where 1e-4 already lost accuracy). Batch
norm is frozen because it is fused into the convolutions; Ultralytics' EMA stays on."""


class _QuantizedTraining:
    """Mixin for a trainer that trains the quantized network which it is given.

    ``distill_model`` names the float model to learn from, see ``distillation``.
    """

    args: Any
    data: Any
    model: Any
    ema: Any

    def _setup_train(self) -> None:
        # Ultralytics would wrap the model for a distillation of its own.
        teacher, self.args.distill_model = self.args.distill_model, None
        super()._setup_train()  # type: ignore[misc]
        self.args.distill_model = teacher
        if teacher is not None:
            student = unwrap_model(self.model)
            float_model = load_checkpoint(teacher, device=next(student.parameters()).device)[0]
            # The average of the weights is validated with the same loss.
            student.criterion = self.ema.ema.criterion = OutputDistillation(float_model)

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """The network to train: ``weights`` itself where it is quantized."""
        if weights is not None and is_qat(weights):
            check_training(weights, self.data, self.args)
            return weights.requires_grad_(True)
        return cast(nn.Module, super().get_model(cfg=cfg, weights=weights, verbose=verbose))  # type: ignore[misc]


class QuantizedDetectionTrainer(_QuantizedTraining, DetectionTrainer):  # type: ignore[misc]
    """Trains a quantized detector."""


class QuantizedSegmentationTrainer(_QuantizedTraining, SegmentationTrainer):  # type: ignore[misc]
    """Trains a quantized segmentation model."""


class QuantizedPoseTrainer(_QuantizedTraining, PoseTrainer):  # type: ignore[misc]
    """Trains a quantized pose model."""


class QuantizedOBBTrainer(_QuantizedTraining, OBBTrainer):  # type: ignore[misc]
    """Trains a quantized detector of oriented boxes."""


class QuantizedClassificationTrainer(_QuantizedTraining, ClassificationTrainer):  # type: ignore[misc]
    """Trains a quantized classifier."""


TRAINERS = {
    "detect": QuantizedDetectionTrainer,
    "segment": QuantizedSegmentationTrainer,
    "pose": QuantizedPoseTrainer,
    "obb": QuantizedOBBTrainer,
    "classify": QuantizedClassificationTrainer,
}


class QuantizedYOLO(YOLO):  # type: ignore[misc]
    """An Ultralytics ``YOLO`` whose ``train`` keeps the quantizers; all else is Ultralytics' own."""

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """Ultralytics' classes for each task, with our trainers."""
        known = super().task_map
        return {task: {**known[task], "trainer": trainer} for task, trainer in TRAINERS.items()}
