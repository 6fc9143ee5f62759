# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a model said of the evaluation images, as arrays that can be compared and kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ultra_mq.core import EvaluationError, atomic_path

ARRAYS = (
    "classes", "boxes", "scores", "correct", "label_classes", "angles", "keypoints", "sigmas", "mask_sizes",
)  # fmt: skip
"""Fields of ``Detections`` that are kept as they are."""

IOUS = 10
"""Thresholds of AP50-95: IoU 0.50 to 0.95 in steps of 0.05."""


@dataclass(frozen=True)
class Detections:
    """Objects found in the evaluation images.

    Attributes:
        file_names: One image name an object, see ``Split.names``.
        classes: Class indices, shape (N,).
        boxes: Pixels of the original image, xywh with the top-left corner, shape (N, 4); rotated boxes before their
            rotation around their centre.
        scores: Confidences in [0, 1], shape (N,).
        images: Names of all images that were looked at, objects or not.
        correct: Whether Ultralytics' validator matched an object to a label at IoU 0.50, 0.55, ... 0.95, shape (N, 10);
            by masks or keypoints where the task has them.
        label_images: One image name a label.
        label_classes: Class indices of the labels, shape (M,).
        task: Ultralytics task.
        angles: Rotations of the boxes in radians, shape (N,); empty for other tasks.
        keypoints: x and y in pixels of the original image, and confidence, shape (N, K, 3); empty for other tasks.
        sigmas: Spread of each keypoint in the object keypoint similarity, shape (K,).
        masks: Run lengths of each mask in pycocotools' compressed form; empty for other tasks.
        mask_sizes: Height and width of each mask in pixels, shape (N, 2).
    """

    file_names: tuple[str, ...]
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    images: tuple[str, ...]
    correct: np.ndarray = field(default_factory=lambda: np.zeros((0, IOUS), bool))
    label_images: tuple[str, ...] = ()
    label_classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    task: str = "detect"
    angles: np.ndarray = field(default_factory=lambda: np.zeros(0))
    keypoints: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3)))
    sigmas: np.ndarray = field(default_factory=lambda: np.zeros(0))
    masks: tuple[bytes, ...] = ()
    mask_sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))


@dataclass(frozen=True)
class Classifications:
    """What a classifier says of the evaluation images.

    Attributes:
        images: Names of the images, see ``Split.names``.
        log_probabilities: Natural logarithms, at least those of the smallest float16, shape (N, classes), float32.
        labels: Class indices of the labels, shape (N,).
    """

    images: tuple[str, ...]
    log_probabilities: np.ndarray
    labels: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """The likeliest class of each image, shape (N,)."""
        found: np.ndarray = self.log_probabilities.argmax(1)
        return found


Predictions = Detections | Classifications


def require_same_images(predictions: Predictions, reference: Predictions) -> None:
    """Refuse to compare models that saw different images.

    Raises:
        EvaluationError: They did.
    """
    if predictions.images != reference.images:
        raise EvaluationError(
            "Two models are compared on the same images, and these saw different ones. Evaluate both on the same data."
        )


def save_predictions(predictions: Predictions, path: Path) -> None:
    """Write predictions as compressed arrays.

    Args:
        predictions: What to keep.
        path: ``.npz`` file.
    """
    if isinstance(predictions, Classifications):
        arrays = {
            "images": np.array(predictions.images),
            "log_probabilities": predictions.log_probabilities,
            "labels": predictions.labels,
        }
    else:
        numbers = {name: number for number, name in enumerate(predictions.images)}
        arrays = {
            **{name: getattr(predictions, name) for name in ARRAYS},
            "task": np.array(predictions.task),
            "images": np.array(predictions.images),
            "files": np.array([numbers[name] for name in predictions.file_names], dtype=np.int32),
            "label_files": np.array([numbers[name] for name in predictions.label_images], dtype=np.int32),
            "masks": np.frombuffer(b"".join(predictions.masks), np.uint8),
            "mask_lengths": np.array([len(mask) for mask in predictions.masks], dtype=np.int64),
        }
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def load_predictions(path: Path) -> Predictions:
    """Read what ``save_predictions`` wrote.

    Raises:
        OSError, ValueError, KeyError: It is not there, or damaged.
    """
    with np.load(path) as arrays:
        images = tuple(str(name) for name in arrays["images"])
        if "log_probabilities" in arrays:
            return Classifications(images, arrays["log_probabilities"], arrays["labels"])
        ends = np.cumsum(arrays["mask_lengths"])
        joined = arrays["masks"].tobytes()
        lengths = arrays["mask_lengths"]
        return Detections(
            file_names=tuple(images[index] for index in arrays["files"]),
            images=images,
            label_images=tuple(images[index] for index in arrays["label_files"]),
            task=str(arrays["task"]),
            masks=tuple(joined[end - length : end] for end, length in zip(ends, lengths, strict=True)),
            **{name: arrays[name] for name in ARRAYS},
        )
