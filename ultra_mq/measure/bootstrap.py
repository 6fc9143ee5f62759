# SPDX-License-Identifier: AGPL-3.0-or-later
"""How sure a difference in accuracy is: a paired bootstrap over the images that both models saw.

Both models are scored on the same images drawn with replacement, over and over (Efron and Tibshirani, "An Introduction
to the Bootstrap", 1993, section 8.3 for paired samples). That some images are harder than others falls out of the
difference, so that it is far surer than either figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ultra_mq.core import track
from ultra_mq.measure.agreement import match_agreement
from ultra_mq.measure.predictions import Classifications, Detections, Predictions, require_same_images

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


def bootstrap_metric(predictions: Predictions, reference: Predictions, seed: int = 0) -> Drop:
    """Points of the task's main metric that are lost from a reference, with their interval.

    That is mAP50-95 by Ultralytics' rule, of boxes, masks, keypoints or rotated boxes, and top-1 of classifiers.

    Args:
        predictions: Of the model under test, with labels.
        reference: Of the float model on the same images, with labels.
        seed: Seed of the draws.

    Raises:
        EvaluationError: The two saw different images.
    """
    require_same_images(predictions, reference)
    return _resample(_scored(predictions), _scored(reference), seed)


def bootstrap_agreement(predictions: Predictions, reference: Predictions, seed: int = 0) -> Drop:
    """Points of agreement with the reference that are lost, with their interval; see ``bootstrap_metric``.

    The reference agrees with itself, at the 0.995 that Ultralytics' rule for the curve gives a perfect detector.
    """
    return _resample(_agreeing(predictions, reference), _agreeing(reference, reference), seed)


def bootstrap_gap(one: Predictions, other: Predictions, reference: Predictions, seed: int = 0) -> Drop:
    """Points of agreement with the reference by which a model is behind another one, with their interval.

    Args:
        one: Of the model that may be behind.
        other: Of the model to be behind of.
        reference: What both shall agree with.
        seed: Seed of the draws.

    Raises:
        EvaluationError: They saw different images.
    """
    return _resample(_agreeing(one, reference), _agreeing(other, reference), seed)


class _Scored(Protocol):
    """What one model found, scored over and over with images counted differently."""

    images: int

    def score(self, weights: np.ndarray) -> float:
        """Figure in [0, 1] with every image counted ``weights`` times."""


class _ScoredClasses:
    """A classifier: the share of images that it is right on."""

    def __init__(self, right: np.ndarray) -> None:
        self.images = len(right)
        self.right = right

    def score(self, weights: np.ndarray) -> float:
        return float(weights @ self.right / weights.sum())


class _ScoredObjects:
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

    def score(self, weights: np.ndarray) -> float:
        """AP50-95, by Ultralytics' own rule for the curve."""
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


def _scored(found: Predictions) -> _Scored:
    if isinstance(found, Classifications):
        return _ScoredClasses(found.classes == found.labels)
    return _ScoredObjects(found)


def _agreeing(found: Predictions, reference: Predictions) -> _Scored:
    if isinstance(found, Classifications):
        require_same_images(found, reference)
        return _ScoredClasses(found.classes == reference.classes)
    assert isinstance(reference, Detections)
    return _ScoredObjects(match_agreement(found, reference))


def _resample(model: _Scored, reference: _Scored, seed: int) -> Drop:
    def lost(weights: np.ndarray) -> float:
        return 100 * (reference.score(weights) - model.score(weights))

    generator = np.random.default_rng(seed)
    draws = generator.multinomial(model.images, np.full(model.images, 1 / model.images), size=DRAWS)
    low, high = np.percentile([lost(draw) for draw in track(draws, "Resampling images", DRAWS)], (2.5, 97.5))
    return Drop(lost(np.ones(model.images)), float(low), float(high), model.images)
