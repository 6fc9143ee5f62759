# SPDX-License-Identifier: AGPL-3.0-or-later
"""What one model found, scored over and over with images counted differently: whole, and class by class."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from ultra_mq.measure.agreement import match_agreement
from ultra_mq.measure.predictions import Classifications, Detections, Predictions, require_same_images

RECALLS = np.linspace(0, 1, 101)
"""Recalls at which the curve is read, COCO's."""


class Scored(Protocol):
    """What one model found.

    Attributes:
        images: Number of images.
        kinds: Class indices that have labels, shape (C,).
        labels: Labels of each, shape (C,).
        holders: Images with a label of each, shape (C,).
    """

    images: int
    kinds: np.ndarray
    labels: np.ndarray
    holders: np.ndarray

    def score(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Figure in [0, 1] with every image counted ``weights`` times, and that of each class; NaN without labels."""


class ScoredClasses:
    """A classifier: the share of images that it is right on, of all and of those of one class.

    Args:
        right: Whether it is right on an image, shape (N,).
        truth: Class that it has to say, shape (N,).
    """

    def __init__(self, right: np.ndarray, truth: np.ndarray) -> None:
        self.images = len(right)
        self.right = right
        self.kinds, of_class = np.unique(truth, return_inverse=True)
        self.members = np.eye(len(self.kinds), dtype=bool)[:, of_class]
        self.labels = self.holders = self.members.sum(1)

    def score(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Top-1, and the recall of each class."""
        members = self.members @ weights
        with np.errstate(invalid="ignore"):
            return float(weights @ self.right / weights.sum()), (self.members @ (weights * self.right)) / members


class ScoredObjects:
    """Detections of one model, sorted once for many weighted scorings."""

    def __init__(self, found: Detections) -> None:
        number = {name: index for index, name in enumerate(found.images)}
        order = np.argsort(-found.scores, kind="stable")
        files = np.array([number[name] for name in found.file_names], dtype=np.int64)[order]
        classes, correct = found.classes[order], found.correct[order]
        label_files = np.array([number[name] for name in found.label_images], dtype=np.int64)
        self.images = len(found.images)
        self.kinds, self.labels = np.unique(found.label_classes, return_counts=True)
        self.by_class = [
            (label_files[found.label_classes == kind], files[classes == kind], correct[classes == kind])
            for kind in self.kinds
        ]
        self.holders = np.array([len(np.unique(holders)) for holders, _, _ in self.by_class], dtype=np.int64)

    def score(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """AP50-95, by Ultralytics' own rule for the curve, and that of each class."""
        scores = np.full(len(self.kinds), np.nan)
        for index, (label_files, files, correct) in enumerate(self.by_class):
            labels = weights[label_files].sum()
            if not labels:
                continue
            weight = weights[files]
            files_seen = weight > 0
            weight, hits = weight[files_seen, None], correct[files_seen]
            true, false = (weight * hits).cumsum(0), (weight * ~hits).cumsum(0)
            if not len(true):
                scores[index] = 0.0
                continue
            recall, precision = true / (labels + 1e-16), true / (true + false)
            scores[index] = average_precisions(recall, precision).mean()
        return float(np.nanmean(scores)) if not np.isnan(scores).all() else 0.0, scores


def average_precisions(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """What Ultralytics' ``compute_ap`` gives for each column of curves of shape (N, T), three to four times as fast.

    Args:
        recall: Recall after each detection, N at least 1.
        precision: Precision after each.

    Returns:
        Average precisions, shape (T,).
    """
    columns = recall.shape[1]
    zeros, ones = np.zeros((1, columns)), np.ones((1, columns))
    recall = np.concatenate([zeros, recall, recall[-1:], ones])
    precision = np.concatenate([ones, precision, zeros, zeros])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    heights = np.array([np.interp(RECALLS, recall[:, i], envelope[:, i]) for i in range(columns)])
    average: np.ndarray = (heights[:, :-1] + heights[:, 1:]).sum(1) / (2 * (len(RECALLS) - 1))
    return average


class Perfect:
    """What agrees with itself on whichever images are drawn."""

    def __init__(self, itself: Scored) -> None:
        self.images, self.kinds, self.labels, self.holders = itself.images, itself.kinds, itself.labels, itself.holders
        self.figures = itself.score(np.ones(itself.images))

    def score(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The same whatever the weights."""
        return self.figures


def against_labels(found: Predictions) -> Scored:
    """Predictions scored by the labels of the data."""
    if isinstance(found, Classifications):
        return ScoredClasses(found.classes == found.labels, found.labels)
    return ScoredObjects(found)


def against_model(found: Predictions, reference: Predictions) -> Scored:
    """Predictions scored by those of the float model.

    Raises:
        EvaluationError: The two saw different images.
    """
    if isinstance(found, Classifications):
        require_same_images(found, reference)
        assert isinstance(reference, Classifications)
        return ScoredClasses(found.classes == reference.classes, reference.classes)
    assert isinstance(reference, Detections)
    return ScoredObjects(match_agreement(found, reference))


def against_itself(reference: Predictions) -> Scored:
    """The float model scored by its own predictions."""
    return Perfect(against_model(reference, reference))


def score_both(
    found: Predictions, reference: Predictions, metric: Literal["map", "agreement"]
) -> tuple[Scored, Scored]:
    """A model and the float one, scored by the labels of the data, or by what the float one says."""
    if metric == "map":
        return against_labels(found), against_labels(reference)
    return against_model(found, reference), against_itself(reference)
