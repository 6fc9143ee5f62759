# SPDX-License-Identifier: AGPL-3.0-or-later
"""Scores: how much each layer's quantization hurts, in one table whatever method made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ultra_mq.core import ModelError
from ultra_mq.prepare import ANCHOR_EXTRAS

if TYPE_CHECKING:
    import torch


LossName = Literal["labels", "outputs"]


ScoreMethod = Literal["perturb", "gradient"]


@dataclass(frozen=True)
class Sensitivity:
    """Scores of every quantizable layer.

    Attributes:
        loss: ``labels`` for the detection loss, ``outputs`` for the change of the model's own outputs.
        images: Number of images that were scored.
        scores: Layer name to format name to score, formats without kernels for a layer left out; higher hurts more, and
            scores of layers add up. ``perturb``: length of the mean changes of logits and of IoU, on an image;
            ``gradient``: squared change of the loss, times ``LOSS_SCALE`` squared, over all images. Those of one method
            do not compare with those of the other.
        method: ``gradient`` for ModelOpt's estimate, ``perturb`` for the change that was measured.
    """

    loss: LossName
    images: int
    scores: dict[str, dict[str, float]]
    method: ScoreMethod = "gradient"

    @property
    def worst(self) -> dict[str, float]:
        """Layer name to its largest score; 0 where no format has kernels for it."""
        return {layer: max(by_format.values(), default=0.0) for layer, by_format in self.scores.items()}


def check_scores(scores: dict[str, dict[str, float]], message: str) -> None:
    """Refuse scores that no plan could be made from.

    Raises:
        ModelError: They are all zero, or not finite.
    """
    values = [score for by_format in scores.values() for score in by_format.values()]
    if not any(values) or not all(0 <= value < float("inf") for value in values):
        raise ModelError(message)


def visible_outputs(output: Any) -> list[torch.Tensor]:
    """Outputs in units of what a user sees, so that squared changes of all of them can be added.

    These are class probabilities and, weighted with the anchor's confidence since empty anchors are never seen: box
    distributions, or distances in strides where the head has no distributions, and mask coefficients, keypoints and
    angles in units of their own spread.

    Args:
        output: What the model returns in eval mode; weights and units are taken without gradient.
    """
    raw = output[1]
    if not isinstance(raw, dict):  # a classifier's logits
        return [raw.softmax(1)]
    confidence = raw["scores"].detach().sigmoid().amax(1, keepdim=True)
    boxes = raw["boxes"]
    if boxes.shape[1] > 4:
        boxes = boxes.view(len(boxes), 4, -1, boxes.shape[2]).softmax(2).flatten(1, 2)
    found = [raw["scores"].sigmoid(), boxes * confidence]
    extra = [name for name in ANCHOR_EXTRAS if name in raw]
    found += [raw[name] / raw[name].detach().std() * confidence for name in extra]
    if "proto" in raw:
        # A mask is coefficients times prototypes: both sides count as much, however many pixels there are.
        weight = (confidence.square().sum() * raw["mask_coefficient"].shape[1] / raw["proto"].numel()).sqrt()
        found.append(raw["proto"] / raw["proto"].detach().std() * weight)
    return found
