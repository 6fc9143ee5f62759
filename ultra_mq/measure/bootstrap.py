# SPDX-License-Identifier: AGPL-3.0-or-later
"""How sure a difference in accuracy is: a paired bootstrap over the images that both models saw.

Both models are scored on the same images drawn with replacement, over and over (Efron and Tibshirani, "An Introduction
to the Bootstrap", 1993, section 8.3 for paired samples). That some images are harder than others falls out of the
difference, so that it is far surer than either figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ultra_mq.core import track
from ultra_mq.measure.accuracy import Accuracy, points_lost
from ultra_mq.measure.predictions import Predictions, require_same_images
from ultra_mq.measure.scored import Scored, against_model, score_both

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


FEW_HOLDERS = 5
"""Images with a class below which its interval says nothing: draws of so few are nearly always the same."""


TRIFLE = 0.1
"""Points below which a loss is not worth a word, however sure it is."""


@dataclass(frozen=True)
class ClassLoss:
    """What one class loses from one model to another.

    Attributes:
        name: Class name.
        labels: Objects of the class that count: of the labels, or of the float model where that is the truth.
        reference: Figure of the float model in [0, 1]: AP50-95, or recall for classifiers.
        model: Figure of the model under test.
        loss: Points lost; its images are those that hold the class.
    """

    name: str
    labels: int
    reference: float
    model: float
    loss: Drop

    @property
    def resolved(self) -> bool:
        """Whether enough images hold the class for its interval to mean something."""
        return self.loss.images >= FEW_HOLDERS

    @property
    def surely_lost(self) -> bool:
        """Whether the class lost more than its interval: the whole of it lies above nothing, and it is no trifle."""
        return self.resolved and self.loss.low > 0 and self.loss.points >= TRIFLE


def find_broken_classes(classes: Sequence[ClassLoss], limit: float | None) -> tuple[ClassLoss, ...]:
    """Classes that are seen to lose more than a class may: enough images hold them, and the whole interval is above."""
    return tuple(one for one in classes if limit is not None and one.resolved and one.loss.low > limit)


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


def bootstrap_predictions(
    predictions: Predictions,
    reference: Predictions,
    metric: Literal["map", "agreement"],
    names: Mapping[int, str] | None = None,
    draws: int = DRAWS,
) -> tuple[Drop, tuple[ClassLoss, ...]]:
    """Points that are lost from a reference, whole and by class, with their intervals.

    The reference agrees with itself, at the 0.995 that Ultralytics' rule for the curve gives a perfect detector.

    Args:
        predictions: Of the model under test.
        reference: Of the float model on the same images.
        metric: ``map``: the task's main metric by Ultralytics' rule, mAP50-95 of boxes, masks, keypoints or rotated
            boxes, and top-1 of classifiers, which needs labels; or ``agreement`` with the reference.
        names: Class index to name.
        draws: Number of draws.

    Raises:
        EvaluationError: The two saw different images.
    """
    require_same_images(predictions, reference)
    return _resample(*score_both(predictions, reference, metric), 0, draws, names)


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
    return bootstrap_classes(model, reference, metric, {}, draws)[0]


def bootstrap_classes(
    model: Accuracy,
    reference: Accuracy,
    metric: Literal["map", "agreement"],
    names: Mapping[int, str],
    draws: int = QUICK_DRAWS,
) -> tuple[Drop, tuple[ClassLoss, ...]]:
    """What ``bootstrap_loss`` gives, and the same for every class, from the same draws.

    Args:
        model: Of the model under test, compared with the float one.
        reference: Of the float model on the same images.
        metric: ``map`` for the task's main metric, or ``agreement``.
        names: Class index to name.
        draws: Number of draws.

    Returns:
        The loss, and those of the classes that have labels, the largest first.
    """
    loss, classes = bootstrap_predictions(model.predictions, reference.predictions, metric, names, draws)
    points = points_lost(model, reference, metric)
    # Ultralytics' rule for the curve and pycocotools' differ by a constant; the draws have the former's.
    off = points - loss.points
    return replace(loss, points=points, low=loss.low + off, high=loss.high + off), classes


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
    return _resample(against_model(one, reference), against_model(other, reference), seed, DRAWS)[0]


def _resample(
    model: Scored, reference: Scored, seed: int, draws: int, names: Mapping[int, str] | None = None
) -> tuple[Drop, tuple[ClassLoss, ...]]:
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(model.images, np.full(model.images, 1 / model.images), size=draws)
    rows = []
    for weights in track(drawn, "Resampling images", draws):
        (base, bases), (found, founds) = reference.score(weights), model.score(weights)
        rows.append(np.array([base - found, *(bases - founds)]))
    losses = 100 * np.array(rows)
    (base, bases), (found, founds) = (one.score(np.ones(model.images)) for one in (reference, model))
    classes = [
        ClassLoss(
            name=(names or {}).get(int(kind), str(kind)),
            labels=int(model.labels[index]),
            reference=float(bases[index]),
            model=float(founds[index]),
            loss=_drop(losses[:, index + 1], 100 * (bases[index] - founds[index]), int(model.holders[index])),
        )
        for index, kind in enumerate(model.kinds)
    ]
    overall = _drop(losses[:, 0], 100 * (base - found), model.images)
    return overall, tuple(sorted(classes, key=lambda one: -one.loss.points))


def _drop(draws: np.ndarray, points: float, images: int) -> Drop:
    # A class is missing in the draws that have none of its images.
    draws = draws[~np.isnan(draws)]
    low, high = recentred(draws, points, 0.95)
    return Drop(float(points), low, high, images, float(np.std(draws, ddof=1)) if len(draws) > 1 else 0.0)


def recentred(draws: np.ndarray, estimate: float, level: float) -> tuple[float, float]:
    """Percentile interval of resampled figures, moved by their bias.

    A resampled set has fewer different images, and AP depends on how many there are: on 114 images of COCO the draws of
    a loss of agreement lie 0.3 points below it (``docs/results/intervals.md``).
    """
    low, high = np.percentile(draws, (50 * (1 - level), 50 * (1 + level))) + estimate - draws.mean()
    return float(low), float(high)
