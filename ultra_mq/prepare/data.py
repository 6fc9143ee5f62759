# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images as the model sees them: the splits of a data set, and deterministic batches of chosen images."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultra_mq.core import DataError

if TYPE_CHECKING:
    import torch
    from ultralytics.data.dataset import ClassificationDataset, YOLODataset

ImageSize = int | tuple[int, int]
"""Pixels of a square, or height and width, as Ultralytics writes ``imgsz``."""


def height_width(imgsz: ImageSize) -> tuple[int, int]:
    """Height and width of an image size in pixels."""
    return (imgsz, imgsz) if isinstance(imgsz, int) else imgsz


def size_text(imgsz: ImageSize) -> str:
    """Image size for the reader and for file names, ``640`` or ``384x640``."""
    return "x".join(map(str, dict.fromkeys(height_width(imgsz))))


@dataclass(frozen=True)
class Split:
    """The images of one split, scanned by Ultralytics.

    Attributes:
        name: ``train`` or ``val``.
        dataset: Ultralytics dataset with the runtime's letterbox, or a classifier's crop, and no augmentation.
        skipped: Images that could not be read and were left out.
    """

    name: str
    dataset: YOLODataset | ClassificationDataset = field(repr=False)
    skipped: int

    @property
    def files(self) -> list[str]:
        """Image files in dataset order, as Ultralytics has them."""
        samples = getattr(self.dataset, "samples", None)
        return [sample[0] for sample in samples] if samples is not None else list(self.dataset.im_files)

    @property
    def images(self) -> list[Path]:
        """Image files in dataset order."""
        return [Path(file) for file in self.files]

    @cached_property
    def names(self) -> dict[str, str]:
        """Image file to what it is called in detections: its path below the folder that all images have in common.

        Cameras number their pictures alike, so that the file name alone does not tell which one is meant.
        """
        files = self.files
        try:
            root = os.path.commonpath([Path(file).parent for file in files])
        except ValueError:  # on several drives of Windows
            return {file: Path(file).as_posix() for file in files}
        return {file: Path(os.path.relpath(file, root)).as_posix() for file in files}

    @property
    def labelled(self) -> bool:
        """Whether at least one image has a label; those of classifiers lie in the folder of their class."""
        labels = getattr(self.dataset, "labels", None)
        return labels is None or any(len(label["cls"]) for label in labels)

    def label_bytes(self, index: int) -> bytes:
        """Label of an image, for fingerprints."""
        labels = getattr(self.dataset, "labels", None)
        if labels is None:
            return str(self.dataset.samples[index][1]).encode()
        label = labels[index]
        parts = [label["cls"], label["bboxes"], *label.get("segments", ()), label.get("keypoints")]
        return b"".join(np.asarray(part).tobytes() for part in parts if part is not None)


@dataclass(frozen=True)
class Data:
    """What a data set consists of, ready to be read.

    Attributes:
        source: What Ultralytics takes as ``data``: a YAML, or the folder of a classification data set.
        names: Class index to class name.
        calibration: Split that calibrates and scores, ``train``.
        evaluation: Split that is evaluated, ``val``.
        imgsz: Image size in pixels, multiples of the model's stride.
        fraction: Share of both splits in use.
        overlap: Number of images that stand in both splits.
        annotations: COCO annotation file that belongs to the evaluation split, if there is one.
        channels: Channels of an image.
        task: Ultralytics task that the labels are for.
        single_cls: Whether all classes count as one.
        kpt_shape: Number of keypoints and of values for each, of pose data.
        remarks: What the user should know of the data.
    """

    source: Path
    names: dict[int, str]
    calibration: Split
    evaluation: Split
    imgsz: ImageSize
    fraction: float
    overlap: int
    annotations: Path | None
    channels: int = 3
    task: str = "detect"
    single_cls: bool = False
    kpt_shape: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()


class Batches:
    """A re-iterable loader of chosen images: each pass yields the same batches in the same order.

    ModelOpt iterates its loader twice, to calibrate and to score; a generator would be empty the second time
    and give all-zero scores without a word.

    Each batch is Ultralytics' own dictionary with ``img`` as float32 in [0, 1], shape (B, C, H, W).
    """

    def __init__(self, split: Split, indices: list[int], batch: int, device: str | torch.device = "cpu") -> None:
        self.split = split
        self.indices = indices
        self.batch = batch
        self.device = device

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from torch.utils.data import default_collate

        dataset = self.split.dataset
        collate = getattr(dataset, "collate_fn", default_collate)
        for start in range(0, len(self.indices), self.batch):
            chosen = self.indices[start : start + self.batch]
            with images_must_be_there():
                batch = collate([dataset[index] for index in chosen])
            pixels = batch["img"].to(self.device)
            # A classifier's transforms have divided by 255 already.
            batch["img"] = pixels if pixels.is_floating_point() else pixels.float() / 255
            yield batch

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content of the chosen images and their labels."""
        return _hash_images(self.split, self.indices)


def load_image(path: Path, imgsz: ImageSize) -> np.ndarray:
    """One letterboxed image, float32 in [0, 1], shape (1, 3, H, W).

    Raises:
        DataError: The image cannot be read.
    """
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.patches import imread

    image = imread(str(path)) if path.is_file() else None
    if image is None:
        raise DataError(f"Image '{path}' cannot be read. Pass a picture like those that the model will see.")
    pixels = LetterBox(height_width(imgsz))(image=image)[..., ::-1].transpose(2, 0, 1)
    scaled: np.ndarray = np.ascontiguousarray(pixels, np.float32)[None] / np.float32(255)
    return scaled


def choose(split: Split, count: int, seed: int = 0) -> list[int]:
    """Choose images of a split: the same ones for the same seed, in file order.

    Args:
        split: Split to choose from.
        count: Number of images wanted; all are taken where there are fewer.
        seed: Seed of the choice.

    Returns:
        Sorted indices into ``split.images``.
    """
    total = len(split.dataset)
    return sorted(random.Random(seed).sample(range(total), min(count, total)))


def fingerprint_split(split: Split) -> str:
    """SHA-256 over the content of all images of a split and their labels."""
    return _hash_images(split, list(range(len(split.dataset))))


@contextlib.contextmanager
def images_must_be_there() -> Iterator[None]:
    """Say which image is gone, of those that were there when the data set was scanned.

    Raises:
        DataError: An image cannot be read any more.
    """
    import cv2

    try:
        yield
    except (FileNotFoundError, cv2.error) as error:
        name = getattr(error, "filename", None) or str(error).removeprefix("Image Not Found ").splitlines()[0]
        raise DataError(
            f"An image of the data set is gone or broken since it was scanned: '{name}'. Bring it back, or start again "
            f"without it; finished stages are in the cache."
        ) from error


def _hash_images(split: Split, indices: list[int]) -> str:
    digest = hashlib.sha256()
    files = split.files
    with images_must_be_there():
        for index in indices:
            digest.update(split.names[files[index]].encode())
            digest.update(Path(files[index]).read_bytes())
            digest.update(split.label_bytes(index))
    return digest.hexdigest()
