# SPDX-License-Identifier: AGPL-3.0-or-later
"""An Ultralytics data YAML to deterministic calibration and evaluation images."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultra_mq.core import DataError, quiet

if TYPE_CHECKING:
    import torch
    from ultralytics.data.dataset import YOLODataset

MAX_CORRUPT_SHARE = 0.05


@dataclass(frozen=True)
class Split:
    """The images of one split, scanned by Ultralytics.

    Attributes:
        name: ``train`` or ``val``.
        dataset: Ultralytics dataset with the runtime's letterbox and no augmentation.
        skipped: Images that could not be read and were left out.
    """

    name: str
    dataset: YOLODataset = field(repr=False)
    skipped: int

    @property
    def images(self) -> list[Path]:
        """Image files in dataset order."""
        return [Path(file) for file in self.dataset.im_files]

    @cached_property
    def names(self) -> dict[str, str]:
        """Image file to what it is called in detections: its path below the folder that all images have in common.

        Cameras number their pictures alike, so that the file name alone does not tell which one is meant.
        """
        files = self.dataset.im_files
        try:
            root = os.path.commonpath([Path(file).parent for file in files])
        except ValueError:  # on several drives of Windows
            return {file: Path(file).as_posix() for file in files}
        return {file: Path(os.path.relpath(file, root)).as_posix() for file in files}

    @property
    def labelled(self) -> bool:
        """Whether at least one image has a box."""
        return any(len(label["cls"]) for label in self.dataset.labels)


@dataclass(frozen=True)
class Data:
    """What a data YAML describes, ready to be read.

    Attributes:
        yaml: The data YAML as resolved by Ultralytics.
        names: Class index to class name.
        calibration: Split that calibrates and scores, ``train``.
        evaluation: Split that is evaluated, ``val``.
        imgsz: Image size in pixels, a multiple of the model's stride.
        fraction: Share of both splits in use.
        overlap: Number of images that stand in both splits.
        annotations: COCO ``instances_*.json`` that belongs to the evaluation split, if there is one.
        channels: Channels of an image.
    """

    yaml: Path
    names: dict[int, str]
    calibration: Split
    evaluation: Split
    imgsz: int
    fraction: float
    overlap: int
    annotations: Path | None
    channels: int = 3


class Batches:
    """A re-iterable loader of chosen images: each pass yields the same batches in the same order.

    ModelOpt iterates its loader twice, to calibrate and to score; a generator would be empty the second time
    and give all-zero scores without a word.

    Each batch is Ultralytics' own dictionary with ``img`` as float32 in [0, 1], shape (B, 3, imgsz, imgsz).
    """

    def __init__(self, split: Split, indices: list[int], batch: int, device: str | torch.device = "cpu") -> None:
        self.split = split
        self.indices = indices
        self.batch = batch
        self.device = device

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        dataset = self.split.dataset
        for start in range(0, len(self.indices), self.batch):
            chosen = self.indices[start : start + self.batch]
            batch = dataset.collate_fn([dataset[index] for index in chosen])
            batch["img"] = batch["img"].to(self.device).float() / 255
            yield batch

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content of the chosen images and their labels."""
        return _hash_images(self.split, self.indices)


def load_image(path: Path, imgsz: int) -> np.ndarray:
    """One letterboxed image, float32 in [0, 1], shape (1, 3, imgsz, imgsz).

    Raises:
        DataError: The image cannot be read.
    """
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.patches import imread

    image = imread(str(path)) if path.is_file() else None
    if image is None:
        raise DataError(f"Image '{path}' cannot be read. Pass a picture like those that the model will see.")
    pixels = LetterBox((imgsz, imgsz))(image=image)[..., ::-1].transpose(2, 0, 1)
    scaled: np.ndarray = np.ascontiguousarray(pixels, np.float32)[None] / np.float32(255)
    return scaled


def load_data(data: str | Path, imgsz: int, stride: int, *, task: str = "detect", fraction: float = 1.0) -> Data:
    """Read a data YAML and scan its train and val splits.

    Args:
        data: Path of a data YAML or the name of one that Ultralytics ships, such as ``coco128.yaml``.
        imgsz: Image size in pixels.
        stride: Largest stride of the model in pixels.
        task: Ultralytics task.
        fraction: Share of both splits to use, the first images by name, as in Ultralytics.

    Raises:
        DataError: The YAML or its images are missing or unreadable, too many images are corrupt, or ``imgsz``
            is not a multiple of ``stride``.
    """
    from ultralytics.data.utils import check_det_dataset

    if imgsz <= 0 or imgsz % stride:
        below, above = imgsz // stride * stride, (imgsz // stride + 1) * stride
        raise DataError(
            f"imgsz={imgsz} is not a multiple of the model's stride {stride}. Use {max(below, stride)} or {above}."
        )
    try:
        with quiet():
            info = check_det_dataset(str(data))
    except Exception as error:
        raise DataError(
            f"Data '{data}' cannot be used: {' '.join(str(error).split())[:400]}. "
            f"Pass a detection data YAML with 'train', 'val' and 'names', for example data=path/to/data.yaml."
        ) from error
    calibration = _scan(info, "train", imgsz, stride, task, fraction)
    evaluation = _scan(info, "val", imgsz, stride, task, fraction)
    seen = {path.resolve() for path in calibration.images}
    overlap = sum(path.resolve() in seen for path in evaluation.images)
    return Data(
        yaml=Path(info.get("yaml_file", data)),
        names=dict(info["names"]),
        calibration=calibration,
        evaluation=evaluation,
        imgsz=imgsz,
        fraction=fraction,
        overlap=overlap,
        annotations=find_annotations(Path(info["path"]), evaluation),
        channels=int(info.get("channels", 3)),
    )


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


def find_annotations(root: Path, split: Split) -> Path | None:
    """Find the COCO ``instances_*.json`` that describes exactly these images.

    Ultralytics looks at the path of the split alone; here the file names decide, so that a slice or a copy of
    COCO is scored as COCO. Files that are named after the images' folder are looked at first: those of train are large.

    Args:
        root: Root folder of the data set.
        split: Split to describe.

    Returns:
        The first file under ``root/annotations`` that knows every image, or None.
    """
    folders = {path.parent.name for path in split.images}
    files = sorted((root / "annotations").glob("instances_*.json"))
    for file in sorted(files, key=lambda file: file.stem.removeprefix("instances_") not in folders):
        try:
            entries = json.loads(file.read_text())["images"]
            if match_images(entries, list(split.names.values())) is not None:
                return file
        except (ValueError, KeyError, TypeError, OSError):  # noqa: PERF203  no COCO annotations, whatever it is
            continue
    return None


def match_images(entries: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any] | None:
    """Image ids of an annotation file by the names that images have in detections.

    Args:
        entries: ``images`` of the annotation file.
        names: Names of all images, see ``Split.names``.

    Returns:
        Name to id, by the path where that is known and by the file name where it is unique on both sides; None where an
        image is not described.
    """
    by_path = {entry["file_name"]: entry["id"] for entry in entries}
    counts = Counter(path.rpartition("/")[2] for path in by_path)
    ours = Counter(name.rpartition("/")[2] for name in names)
    by_file = {path.rpartition("/")[2]: number for path, number in by_path.items()}
    ids = {}
    for name in names:
        file = name.rpartition("/")[2]
        if name in by_path:
            ids[name] = by_path[name]
        elif counts[file] == 1 and ours[file] == 1:
            ids[name] = by_file[file]
        else:
            return None
    return ids


def _scan(info: dict[str, Any], name: str, imgsz: int, stride: int, task: str, fraction: float) -> Split:
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset

    cfg = get_cfg(overrides={"task": task, "imgsz": imgsz, "rect": False, "cache": False})
    try:
        with quiet():
            dataset = build_yolo_dataset(
                cfg, info[name], batch=1, data=info, mode="val", stride=stride, fraction=fraction
            )
    except Exception as error:
        raise DataError(
            f"The '{name}' split of '{info.get('yaml_file')}' has no usable images in '{info[name]}': "
            f"{' '.join(str(error).split())[:300]}. Check the path and the image files."
        ) from error
    # label_files is made before Ultralytics drops what it cannot read.
    total = len(dataset.label_files)
    skipped = total - len(dataset.im_files)
    if skipped > MAX_CORRUPT_SHARE * total:
        raise DataError(
            f"{skipped} of {total} images in the '{name}' split of '{info.get('yaml_file')}' cannot be read, "
            f"more than {MAX_CORRUPT_SHARE:.0%}. Repair or remove them; Ultralytics lists them when it scans the data."
        )
    return Split(name, dataset, skipped)


def _hash_images(split: Split, indices: list[int]) -> str:
    digest = hashlib.sha256()
    for index in indices:
        file = Path(split.dataset.im_files[index])
        label = split.dataset.labels[index]
        digest.update(split.names[split.dataset.im_files[index]].encode())
        digest.update(file.read_bytes())
        digest.update(label["cls"].tobytes())
        digest.update(label["bboxes"].tobytes())
    return digest.hexdigest()
