# SPDX-License-Identifier: AGPL-3.0-or-later
"""How sure a difference in accuracy is: a paired bootstrap over the images that both models saw.

Both models are scored on the same images drawn with replacement, over and over (Efron and Tibshirani, "An Introduction
to the Bootstrap", 1993, section 8.3 for paired samples). That some images are harder than others falls out of the
difference, so that it is far surer than either figure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ultra_mq.core import track
from ultra_mq.measure.coco import Detections, match_agreement, require_same_images

DRAWS = 500


@dataclass(frozen=True)
class Drop:
    """Points lost from one model to another.

    Attributes:
        points: Loss on the images as they are; negative for a gain.
        low: Lower end of its 95 % interval.
        high: Upper end.
        images: Number of images.
    """

    points: float
    low: float
    high: float
    images: int


def bootstrap_map(detections: Detections, reference: Detections, seed: int = 0) -> Drop:
    """Points of Ultralytics' mAP50-95 that are lost from a reference, with their interval.

    Args:
        detections: Detections of the model under test, with labels.
        reference: Detections of the float model on the same images, with labels.
        seed: Seed of the draws.

    Raises:
        EvaluationError: The two saw different images.
    """
    require_same_images(detections, reference)
    return _resample(_Scored(detections), _Scored(reference), seed)


def bootstrap_agreement(detections: Detections, reference: Detections, seed: int = 0) -> Drop:
    """Points of agreement with the reference that are lost, with their interval; see ``bootstrap_map``.

    The reference agrees with itself, at the 0.995 that Ultralytics' rule for the curve gives a perfect model.
    """
    itself = _Scored(match_agreement(reference, reference))
    return _resample(_Scored(match_agreement(detections, reference)), itself, seed)


class _Scored:
    """Detections of one model, sorted once for many weighted scorings."""

    def __init__(self, found: Detections) -> None:
        number = {name: index for index, name in enumerate(found.images)}
        order = np.argsort(-found.scores, kind="stable")
        files = np.array([number[name] for name in found.file_names], dtype=np.int64)[order]
        classes, correct = found.classes[order], found.correct[order]
        label_files = np.array([number[name] for name in found.label_images], dtype=np.int64)
        self.images = len(found.images)
        self.by_class = [
            (label_files[found.label_classes == kind], files[classes == kind], correct[classes == kind])
            for kind in np.unique(found.label_classes)
        ]

    def average_precision(self, weights: np.ndarray) -> float:
        """AP50-95 with every image counted ``weights`` times, by Ultralytics' own rule for the curve."""
        from ultralytics.utils.metrics import compute_ap

        scores = []
        for label_files, files, correct in self.by_class:
            labels = weights[label_files].sum()
            if not labels:
                continue
            weight = weights[files]
            files_seen = weight > 0
            weight, hits = weight[files_seen, None], correct[files_seen]
            true, false = (weight * hits).cumsum(0), (weight * ~hits).cumsum(0)
            if not len(true):
                scores.append(0.0)
                continue
            recall, precision = true / (labels + 1e-16), true / (true + false)
            scores.append(float(np.mean([compute_ap(recall[:, i], precision[:, i])[0] for i in range(hits.shape[1])])))
        return float(np.mean(scores)) if scores else 0.0


def _resample(model: _Scored, reference: _Scored, seed: int) -> Drop:
    def lost(weights: np.ndarray) -> float:
        return 100 * (reference.average_precision(weights) - model.average_precision(weights))

    generator = np.random.default_rng(seed)
    draws = generator.multinomial(model.images, np.full(model.images, 1 / model.images), size=DRAWS)
    low, high = np.percentile([lost(draw) for draw in track(draws, "Resampling images", DRAWS)], (2.5, 97.5))
    return Drop(lost(np.ones(model.images)), float(low), float(high), model.images)
