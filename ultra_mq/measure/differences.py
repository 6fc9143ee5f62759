# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where two models part, image by image: objects lost, gained, moved, or called something else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ultra_mq.measure.agreement import OKS_AREA, REFERENCE_CONFIDENCE
from ultra_mq.measure.predictions import Classifications, Detections, Predictions, require_same_images

if TYPE_CHECKING:
    import torch

Kind = Literal["lost", "gained", "moved", "flipped"]

SAME_OBJECT = 0.5
"""Similarity from which on two detections are of one object, as in AP50."""

NEAR = 0.3
"""IoU of boxes from which on an object that one model loses and the other gains is one that moved, however far its mask
or keypoints did."""

MOVED = 0.75
"""Similarity below which an object that both models found is drawn somewhere else."""


@dataclass(frozen=True)
class Difference:
    """One object on which two models part.

    Attributes:
        kind: ``lost`` and ``gained``: only one of them would draw it; ``moved``: both, in different places;
            ``flipped``: both, as different classes.
        weight: How much: the confidence that was lost or gained, or the confidence times the share that moved.
        before: Index among the reference's predictions; None for one that was gained.
        after: Index among the model's predictions; None for one that was lost.
    """

    kind: Kind
    weight: float
    before: int | None
    after: int | None


@dataclass(frozen=True)
class ImageDifferences:
    """One image as two models see it.

    Attributes:
        image: Name of the image, see ``Split.names``.
        weight: Sum of the weights of its differences.
        differences: Objects on which they part, the largest first.
        same: Pairs of indices of the objects that both would draw alike: reference, model.
    """

    image: str
    weight: float
    differences: tuple[Difference, ...]
    same: tuple[tuple[int, int], ...]


def find_differences(model: Predictions, reference: Predictions) -> tuple[ImageDifferences, ...]:
    """Compare two models on every image: what would be drawn at a confidence of 0.25, as Ultralytics draws.

    An object is lost by as much confidence as separates it from the nearest detection of the other model, of whatever
    confidence: one that falls from 0.26 to 0.24 hardly counts.

    Args:
        model: Of the model under test; objects at all confidences.
        reference: Of the float model.

    Returns:
        Every image, that with the largest differences first.

    Raises:
        EvaluationError: The two saw different images.
    """
    require_same_images(model, reference)
    if isinstance(model, Classifications) or isinstance(reference, Classifications):
        assert isinstance(model, Classifications)
        assert isinstance(reference, Classifications)
        found = _compare_classes(model, reference)
    else:
        before, after = _by_image(reference), _by_image(model)
        found = [_compare_objects(image, model, reference, after[image], before[image]) for image in reference.images]
    return tuple(sorted(found, key=lambda one: -one.weight))


def sample_evenly(found: Sequence[ImageDifferences], count: int) -> tuple[ImageDifferences, ...]:
    """Images spread evenly from the largest difference to the smallest, the ends left out: the usual case."""
    count = min(count, len(found))
    return tuple(found[int((index + 0.5) * len(found) / count)] for index in range(count))


def _by_image(found: Detections) -> dict[str, list[int]]:
    indices = defaultdict(list)
    for index, name in enumerate(found.file_names):
        indices[name].append(index)
    return indices


def _compare_classes(model: Classifications, reference: Classifications) -> list[ImageDifferences]:
    rows = np.arange(len(reference.images))
    moved = np.abs(
        np.exp(model.log_probabilities[rows, reference.classes])
        - np.exp(reference.log_probabilities[rows, reference.classes])
    )
    found = []
    for row, image in enumerate(reference.images):
        flipped = model.classes[row] != reference.classes[row]
        differences = (Difference("flipped", float(moved[row]), row, row),) if flipped else ()
        # A class that flips counts more than any confidence that moves.
        found.append(
            ImageDifferences(image, float(flipped + moved[row]), differences, () if flipped else ((row, row),))
        )
    return found


def _compare_objects(
    image: str, model: Detections, reference: Detections, after: list[int], before: list[int]
) -> ImageDifferences:
    alike = _similarity(model, reference, after, before)
    drawn_after = {index for index in after if model.scores[index] >= REFERENCE_CONFIDENCE}
    pairs = _match(model, reference, after, before, alike)
    column_of = {index: column for column, index in enumerate(after)}
    matched_after = {index: other for other, index in pairs.items()}
    differences, same = [], []
    for row, index in enumerate(before):
        score = float(reference.scores[index])
        if score < REFERENCE_CONFIDENCE:
            continue
        other = pairs.get(index)
        if other is None or other not in drawn_after:
            near = (after[column] for column in np.flatnonzero(alike[row] >= SAME_OBJECT))
            flipped = [candidate for candidate in near if candidate in drawn_after and candidate not in matched_after]
            if flipped:
                matched_after[flipped[0]] = index
                differences.append(Difference("flipped", score, index, flipped[0]))
            else:
                left = float(model.scores[other]) if other is not None else 0.0
                differences.append(Difference("lost", score - left, index, None))
            continue
        likeness = float(alike[row, column_of[other]])
        if likeness < MOVED:
            differences.append(Difference("moved", _moved(reference, index, likeness), index, other))
        else:
            same.append((index, other))
    for index in after:
        score, partner = float(model.scores[index]), matched_after.get(index)
        if index in drawn_after and (partner is None or reference.scores[partner] < REFERENCE_CONFIDENCE):
            left = float(reference.scores[partner]) if partner is not None else 0.0
            differences.append(Difference("gained", score - left, None, index))
    differences = _join_moved(differences, model, reference, after, before, alike)
    return ImageDifferences(image, sum(one.weight for one in differences), tuple(differences), tuple(same))


def _join_moved(
    differences: list[Difference],
    model: Detections,
    reference: Detections,
    after: list[int],
    before: list[int],
    alike: np.ndarray,
) -> list[Difference]:
    """What is lost and gained near by, as one class, is an object that moved; the largest differences first."""
    from ultralytics.utils.metrics import box_iou

    lost = [one for one in differences if one.kind == "lost"]
    gained = [one for one in differences if one.kind == "gained"]
    if not lost or not gained:
        return sorted(differences, key=lambda one: -one.weight)
    overlaps = box_iou(
        _corners(reference, [one.before for one in lost if one.before is not None]),
        _corners(model, [one.after for one in gained if one.after is not None]),
    ).numpy()
    joined: list[Difference] = []
    gone: list[Difference] = []
    for row, column in sorted(np.argwhere(overlaps >= NEAR).tolist(), key=lambda pair: -overlaps[tuple(pair)]):
        one, other = lost[row], gained[column]
        assert one.before is not None
        assert other.after is not None
        if one in gone or other in gone or reference.classes[one.before] != model.classes[other.after]:
            continue
        likeness = float(alike[before.index(one.before), after.index(other.after)])
        joined.append(Difference("moved", _moved(reference, one.before, likeness), one.before, other.after))
        gone += [one, other]
    return sorted([*(one for one in differences if one not in gone), *joined], key=lambda one: -one.weight)


def _moved(reference: Detections, index: int, likeness: float) -> float:
    return (1 - likeness) * float(reference.scores[index])


def _corners(side: Detections, rows: list[int]) -> torch.Tensor:
    """Left, top, right, bottom."""
    import torch

    boxes = side.boxes[rows].copy()
    boxes[:, 2:] += boxes[:, :2]
    return torch.tensor(boxes)


def _match(
    model: Detections, reference: Detections, after: list[int], before: list[int], alike: np.ndarray
) -> dict[int, int]:
    """Objects of one class that are the same, each in one pair, the likest first: reference to model."""
    drawn = np.maximum.outer(reference.scores[before], model.scores[after]) >= REFERENCE_CONFIDENCE
    same_class = np.equal.outer(reference.classes[before], model.classes[after])
    rows, columns = np.nonzero((alike >= SAME_OBJECT) & same_class & drawn)
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for index in np.argsort(-alike[rows, columns], kind="stable"):
        one, other = before[rows[index]], after[columns[index]]
        if one not in pairs and other not in taken:
            pairs[one] = other
            taken.add(other)
    return pairs


def _similarity(model: Detections, reference: Detections, after: list[int], before: list[int]) -> np.ndarray:
    """IoU of boxes or masks, probabilistic IoU of rotated boxes, or object keypoint similarity; reference by model."""
    import torch
    from ultralytics.utils.metrics import batch_probiou, box_iou, kpt_iou

    if not before or not after:
        return np.zeros((len(before), len(after)))
    if reference.task == "segment":
        from pycocotools import mask

        one, other = (
            [{"size": side.mask_sizes[index].tolist(), "counts": side.masks[index]} for index in indices]
            for side, indices in ((reference, before), (model, after))
        )
        shared: np.ndarray = mask.iou(one, other, [False] * len(other))
        return shared
    if reference.task == "pose":
        points = [torch.tensor(side.keypoints[rows]) for side, rows in ((reference, before), (model, after))]
        points[0][..., 2] = 1  # every keypoint of the reference counts, as in agreement
        area = torch.tensor(reference.boxes[before, 2:].prod(1) * OKS_AREA)
        likeness: np.ndarray = kpt_iou(points[0], points[1], area, reference.sigmas.tolist()).numpy()
        return likeness
    if reference.task == "obb":
        centred = []
        for side, rows in ((reference, before), (model, after)):
            boxes = side.boxes[rows].copy()
            boxes[:, :2] += boxes[:, 2:] / 2
            centred.append(torch.tensor(np.concatenate([boxes, side.angles[rows, None]], axis=1)))
        turned: np.ndarray = batch_probiou(*centred).numpy()
        return turned
    found: np.ndarray = box_iou(_corners(reference, before), _corners(model, after)).numpy()
    return found
