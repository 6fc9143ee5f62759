# SPDX-License-Identifier: AGPL-3.0-or-later
"""Distillation for quantization-aware training: the outputs of the float model in place of labels.

Ultralytics' own distillation learns a projection between the features of two different networks. Here teacher and
student are the same network in two precisions, so their outputs are held against each other as they are, and no labels
are needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from ultra_mq.prepare import ANCHOR_EXTRAS


class OutputDistillation:
    """A criterion in Ultralytics' form: distance of the student's raw outputs from the teacher's.

    Classes by binary cross-entropy, box distributions by cross-entropy (distances by L1 where the head has no
    distributions), other outputs of an anchor, and mask prototypes, by squared error in units of the teacher's spread.
    What belongs to an anchor is weighted with its confidence, since the boxes of empty anchors are never seen.

    Args:
        teacher: Float model.
    """

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher.eval().requires_grad_(False)

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Parts of the loss of one batch, times the batch size as Ultralytics wants it; and the parts by name."""
        with torch.no_grad():
            wanted = raw_outputs(self.teacher(batch["img"]))
        parts = _loss_parts(raw_outputs(preds), wanted)
        return torch.stack(list(parts.values())) * len(batch["img"]), {k: part.detach() for k, part in parts.items()}


def raw_outputs(output: Any) -> Any:
    """Raw outputs: in eval mode they come beside the decoded ones, and a head with two branches names them."""
    while isinstance(output, (tuple, list)):
        output = output[1]
    return output.get("one2one", output) if isinstance(output, dict) else output


def _loss_parts(found: Any, wanted: Any) -> dict[str, torch.Tensor]:
    """Distance of raw outputs, by name: scalars, mean over the confidence of anchors.

    Args:
        found: Raw outputs of the student: ``scores`` (B, classes, N) logits, ``boxes`` (B, 4 or 4 x bins, N), others by
            anchor, ``proto``; or a classifier's logits (B, classes).
        wanted: The same of the teacher.
    """
    if isinstance(wanted, torch.Tensor):  # a classifier's logits
        return {"cls_dis": F.cross_entropy(found, wanted.softmax(1))}
    probabilities = wanted["scores"].sigmoid()
    confidence = probabilities.amax(1, keepdim=True)
    total = confidence.sum().clamp(min=1)
    classes = F.binary_cross_entropy_with_logits(found["scores"], probabilities, reduction="sum") / total
    if wanted["boxes"].shape[1] > 4:
        shape = (len(confidence), 4, -1, confidence.shape[2])
        target, logits = wanted["boxes"].view(shape).softmax(2), found["boxes"].view(shape).log_softmax(2)
        boxes = -((target * logits).sum(2) * confidence).sum() / total
    else:
        boxes = ((found["boxes"] - wanted["boxes"]).abs() * confidence).sum() / total
    for name in ANCHOR_EXTRAS:
        if name in wanted:
            error = ((found[name] - wanted[name]) / wanted[name].std()).square().mean(1, keepdim=True)
            boxes = boxes + (error * confidence).sum() / total
    if "proto" in wanted:
        boxes = boxes + F.mse_loss(found["proto"], wanted["proto"]) / wanted["proto"].var()
    return {"box_dis": boxes, "cls_dis": classes}
