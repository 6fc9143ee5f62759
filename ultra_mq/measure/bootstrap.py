# SPDX-License-Identifier: AGPL-3.0-or-later
"""How sure a difference in accuracy is: a paired bootstrap over the images that both models saw.

Both models are scored on the same images drawn with replacement, over and over (Efron and Tibshirani, "An Introduction
to the Bootstrap", 1993, section 8.3 for paired samples). That some images are harder than others falls out of the
difference, so that it is far surer than either figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from ultra_mq.core import track
from ultra_mq.measure.accuracy import Accuracy, points_lost
from ultra_mq.measure.agreement import match_agreement
from ultra_mq.measure.predictions import Classifications, Detections, Predictions, require_same_images

DRAWS = 500

QUICK_DRAWS = 200
"""Draws where many models are compared."""

USUAL_CONFIDENCE = 0.95
"""How sure a verdict is where nobody says how sure it has to be."""

Verdict = Literal["holds", "fails", "open"]


@dataclass(frozen=True)
class Drop:
    """Points lost from one model to another.

    Attributes:
        points: Loss on the images as they are; negative for a gain.
        low: Lower end of its 95 % interval.
        high: Upper end.
        images: Number of images.
        deviation: Standard deviation of the loss over the draws.
    """

    points: float
    low: float
    high: float
    images: int
    deviation: float

    def sure_within(self, limit: float) -> float:
        """Probability that the loss is at most a limit, by a normal distribution around the estimate."""
        if not self.deviation:
            return float(self.points <= limit)
        return 0.5 * (1 + math.erf((limit - self.points) / (self.deviation * math.sqrt(2))))

    def judge(self, limit: float, confidence: float = USUAL_CONFIDENCE) -> Verdict:
        """Whether the loss keeps to a limit, as sure as asked for; ``open`` where these images cannot tell."""
        sure = self.sure_within(limit)
        return "holds" if sure >= confidence else "fails" if sure <= 1 - confidence else "open"

    def images_needed(self, limit: float, confidence: float = USUAL_CONFIDENCE) -> int | None:
        """Images that would tell, were the loss what it is here: the deviation falls with their square root.

        None where the loss is the limit, which no number of images can tell apart.
        """
        from scipy.stats import norm

        if self.points == limit:
            return None
        return math.ceil(self.images * (float(norm.ppf(confidence)) * self.deviation / (limit - self.points)) ** 2)


def describe_loss(loss: Drop, limit: float, confidence: float | None = None) -> str:
    """A loss against its limit in words: its interval, how sure the verdict is, and how many images would tell.

    Args:
        loss: Points lost.
        limit: Points that may be lost.
        confidence: How sure a verdict has to be; 95 % where nobody says.
    """
    confidence = confidence or USUAL_CONFIDENCE
    text = f"loses {loss.points:.2f} points ({loss.low:.2f} to {loss.high:.2f}) on {loss.images} images"
    sure = loss.sure_within(limit)
    if loss.judge(limit, confidence) != "open":
        word, sure = ("holds", sure) if sure > 0.5 else ("fails", 1 - sure)
        return f"{text}: it {word} {limit:g} points, {100 * sure:.0f} % sure."
    needed = loss.images_needed(limit, confidence)
    more = f"; about {needed} images would be needed to be {100 * confidence:.0f} % sure" if needed else ""
    return f"{text}: whether it holds {limit:g} points cannot be told, {100 * sure:.0f} % sure that it does{more}."


def bootstrap_metric(predictions: Predictions, reference: Predictions, seed: int = 0, draws: int = DRAWS) -> Drop:
    """Points of the task's main metric that are lost from a reference, with their interval.

    That is mAP50-95 by Ultralytics' rule, of boxes, masks, keypoints or rotated boxes, and top-1 of classifiers.

    Args:
        predictions: Of the model under test, with labels.
        reference: Of the float model on the same images, with labels.
        seed: Seed of the draws.
        draws: Number of draws.

    Raises:
        EvaluationError: The two saw different images.
    """
    require_same_images(predictions, reference)
    return _resample(_scored(predictions), _scored(reference), seed, draws)


def bootstrap_agreement(predictions: Predictions, reference: Predictions, seed: int = 0, draws: int = DRAWS) -> Drop:
    """Points of agreement with the reference that are lost, with their interval; see ``bootstrap_metric``.

    The reference agrees with itself, at the 0.995 that Ultralytics' rule for the curve gives a perfect detector.
    """
    return _resample(_agreeing(predictions, reference), _agreeing_with_itself(reference), seed, draws)


def bootstrap_loss(
    model: Accuracy, reference: Accuracy, metric: Literal["map", "agreement"], draws: int = QUICK_DRAWS
) -> Drop:
    """Points that a model loses against the float one, as ``points_lost`` counts them, with their interval.

    Args:
        model: Of the model under test, compared with the float one.
        reference: Of the float model on the same images.
        metric: ``map`` for the task's main metric, or ``agreement``.
        draws: Number of draws.
    """
    resample = bootstrap_metric if metric == "map" else bootstrap_agreement
    found = resample(model.predictions, reference.predictions, draws=draws)
    points = points_lost(model, reference, metric)
    # Ultralytics' rule for the curve and pycocotools' differ by a constant; the draws have the former's.
    off = points - found.points
    return replace(found, points=points, low=found.low + off, high=found.high + off)


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
    return _resample(_agreeing(one, reference), _agreeing(other, reference), seed, DRAWS)


class _Scored(Protocol):
    """What one model found, scored over and over with images counted differently."""

    images: int

    def score(self, weights: np.ndarray) -> float:
        """Figure in [0, 1] with every image counted ``weights`` times."""


class _Constant:
    """What agrees with itself on whichever images are drawn."""

    def __init__(self, figure: float, images: int) -> None:
        self.figure, self.images = figure, images

    def score(self, weights: np.ndarray) -> float:
        return self.figure


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


def _agreeing_with_itself(reference: Predictions) -> _Scored:
    itself = _agreeing(reference, reference)
    return _Constant(itself.score(np.ones(itself.images)), itself.images)


def _resample(model: _Scored, reference: _Scored, seed: int, draws: int) -> Drop:
    def lost(weights: np.ndarray) -> float:
        return 100 * (reference.score(weights) - model.score(weights))

    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(model.images, np.full(model.images, 1 / model.images), size=draws)
    losses = np.array([lost(weights) for weights in track(drawn, "Resampling images", draws)])
    points = lost(np.ones(model.images))
    low, high = recentred(losses, points, 0.95)
    return Drop(points, low, high, model.images, float(np.std(losses, ddof=1)))


def recentred(draws: np.ndarray, estimate: float, level: float) -> tuple[float, float]:
    """Percentile interval of resampled figures, moved by their bias.

    A resampled set has fewer different images, and AP depends on how many there are: on 114 images of COCO the draws of
    a loss of agreement lie 0.3 points below it (``docs/results/intervals.md``).
    """
    low, high = np.percentile(draws, (50 * (1 - level), 50 * (1 + level))) + estimate - draws.mean()
    return float(low), float(high)
