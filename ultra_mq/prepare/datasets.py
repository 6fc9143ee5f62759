# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whatever Ultralytics takes as ``data`` to the images of its splits: YAML, folder, list, NDJSON, class folders."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultra_mq.core import DataError, quiet
from ultra_mq.prepare.annotations import find_annotations
from ultra_mq.prepare.data import Data, ImageSize, Split, height_width
from ultra_mq.prepare.model import PreparedModel

MAX_CORRUPT_SHARE = 0.05

PEEKED = 8
"""Images of a split whose depth is looked at."""


def load_data(
    data: str | Path,
    imgsz: ImageSize,
    stride: int,
    *,
    task: str = "detect",
    fraction: float = 1.0,
    single_cls: bool = False,
    classes: Mapping[int, str] | None = None,
) -> Data:
    """Read a data set and scan its train and val splits.

    Args:
        data: What Ultralytics takes: a data YAML or the name of one that it ships, such as ``coco128.yaml``, an NDJSON
            file, or the folder of a classification data set.
        imgsz: Image size in pixels, a number or height and width.
        stride: Largest stride of the model in pixels; 1 for a classifier.
        task: Ultralytics task.
        fraction: Share of both splits to use, the first images by name, as in Ultralytics.
        single_cls: Count all classes as one, as in Ultralytics.
        classes: The model's class names, in whose order a classifier's folders are numbered.

    Raises:
        DataError: The data or its images are missing or unreadable, too many images are corrupt, or ``imgsz``
            is not a multiple of ``stride``.
    """
    check_imgsz(imgsz, stride)
    if task == "classify" and not isinstance(imgsz, int):
        raise DataError(
            f"imgsz={list(imgsz)} is no square, and classifiers crop squares. Use imgsz={max(imgsz)} or another number."
        )
    if task == "classify":
        source, info = _check_classes(data)
    else:
        source, info = _check_yaml(data)
    if single_cls:
        info["names"], info["nc"] = {0: next(iter((classes or {}).values()), "item")}, 1
    scan = _Scan(info, imgsz, stride, task, fraction, single_cls, classes)
    calibration, evaluation = scan.split("train"), scan.split("val")
    seen = {path.resolve() for path in calibration.images}
    overlap = sum(path.resolve() in seen for path in evaluation.images)
    images, called = evaluation.images, list(evaluation.names.values())
    root = Path(info.get("path", source))
    annotations, reason = find_annotations(root, images, called, info["names"], task)
    boxes_alone = None
    if not scan.outlined:
        what = "masks" if task == "segment" else "rotated boxes"
        boxes_alone = f"The labels are boxes without {what}, so accuracy is proven by agreement with the float model."
    return Data(
        source=source,
        names=dict(info["names"]),
        calibration=calibration,
        evaluation=evaluation,
        imgsz=imgsz,
        fraction=fraction,
        overlap=overlap,
        annotations=annotations,
        channels=int(info.get("channels", 3)),
        task=task,
        single_cls=single_cls,
        kpt_shape=tuple(info["kpt_shape"]) if "kpt_shape" in info else None,
        remarks=tuple(filter(None, (reason, boxes_alone, _deep_images(calibration), _deep_images(evaluation)))),
    )


def load_images(sources: Sequence[str | Path], model: PreparedModel, imgsz: ImageSize) -> Split:
    """Scan folders of images that need no labels, as the model sees them.

    Args:
        sources: Folders, or files that list images.
        model: Prepared model.
        imgsz: Image size in pixels.

    Raises:
        DataError: There are no images, or the model is a classifier, whose images lie in the folders of their class.
    """
    if model.task == "classify":
        raise DataError(
            "A classifier's images lie in the folders of their classes. Pass a data set in place of a folder."
        )
    if missing := [str(source) for source in sources if not Path(source).exists()]:
        raise DataError(f"Images '{missing[0]}' not found. Pass a folder of images.")
    info: dict[str, Any] = {
        "names": model.names,
        "nc": len(model.names),
        "channels": model.channels,
        "images": [str(source) for source in sources],
    }
    if model.kpt_shape:
        info["kpt_shape"] = model.kpt_shape
    return _Scan(info, imgsz, model.stride, model.task, 1.0, False, None).split("images")


def check_imgsz(imgsz: ImageSize, stride: int) -> None:
    """Refuse image sizes that a model cannot take.

    Raises:
        DataError: Height or width is no multiple of the stride.
    """
    for size in height_width(imgsz):
        if size <= 0 or size % stride:
            below, above = size // stride * stride, (size // stride + 1) * stride
            raise DataError(
                f"imgsz={size} is not a multiple of the model's stride {stride}. Use {max(below, stride)} or {above}."
            )


def _check_yaml(data: str | Path) -> tuple[Path, dict[str, Any]]:
    from ultralytics.data.utils import check_det_dataset, convert_ndjson_to_yolo_if_needed

    try:
        with quiet():
            source = convert_ndjson_to_yolo_if_needed(str(data))
            info = check_det_dataset(str(source))
    except (Exception, SystemExit) as error:
        raise DataError(
            f"Data '{data}' cannot be used: {' '.join(str(error).split())[:400]}. "
            f"Pass a data YAML with 'train', 'val' and 'names', for example data=path/to/data.yaml."
        ) from error
    return Path(info.get("yaml_file", source)), info


def _check_classes(data: str | Path) -> tuple[Path, dict[str, Any]]:
    from ultralytics.data.utils import check_cls_dataset, convert_ndjson_to_yolo_if_needed

    try:
        with quiet():
            source = convert_ndjson_to_yolo_if_needed(str(data))
            info = check_cls_dataset(str(source), split="val")
    except (Exception, SystemExit) as error:
        raise DataError(
            f"Data '{data}' cannot be used: {' '.join(str(error).split())[:400]}. "
            f"A classifier needs a folder with 'train' and 'val', and in each a folder for every class."
        ) from error
    if info["val"] is None:
        raise DataError(f"Data '{data}' has no 'val' folder to evaluate on. Split it, for example with Ultralytics.")
    return Path(info["train"]).parent, info


class _Scan:
    """Makes the splits of a data set with one and the same settings."""

    def __init__(
        self,
        info: dict[str, Any],
        imgsz: ImageSize,
        stride: int,
        task: str,
        fraction: float,
        single_cls: bool,
        classes: Mapping[int, str] | None,
    ) -> None:
        from ultralytics.cfg import get_cfg

        self.info, self.stride, self.task, self.fraction, self.classes = info, stride, task, fraction, classes
        self.outlined = True
        overrides = {"task": task, "imgsz": 640, "rect": False, "cache": False, "single_cls": single_cls}
        self.cfg = get_cfg(overrides=overrides)
        # A list of two is right for evaluation, and what get_cfg refuses for lack of knowing what it is for.
        self.cfg.imgsz = imgsz if isinstance(imgsz, int) else list(imgsz)
        self.cfg.fraction = [fraction, fraction]

    def split(self, name: str) -> Split:
        """The images of a split that can be read."""
        where = self.info.get("yaml_file") or self.info.get("path") or self.info[name]
        try:
            with quiet():
                dataset, total = self._classify(name) if self.task == "classify" else self._detect(name)
        except Exception as error:
            raise DataError(
                f"The '{name}' split of '{where}' has no usable images in '{self.info[name]}': "
                f"{' '.join(str(error).split())[:300]}. Check the path and the image files."
            ) from error
        skipped = total - len(dataset)
        if skipped > MAX_CORRUPT_SHARE * total:
            raise DataError(
                f"{skipped} of {total} images in the '{name}' split of '{where}' cannot be read, "
                f"more than {MAX_CORRUPT_SHARE:.0%}. Repair or remove them; Ultralytics lists them when it scans data."
            )
        return Split(name, dataset, skipped)

    def _detect(self, name: str) -> tuple[Any, int]:
        from ultralytics.data.build import build_yolo_dataset

        cfg = copy.copy(self.cfg)
        if self.task in ("segment", "obb"):
            cfg.task = "detect"
        dataset = build_yolo_dataset(
            cfg, self.info[name], 1, self.info, mode="val", stride=self.stride, fraction=self.fraction
        )
        # label_files is made before Ultralytics drops what it cannot read.
        total = len(dataset.label_files)
        if self.task in ("segment", "obb"):
            self._outline(dataset)
        return dataset, total

    def _outline(self, dataset: Any) -> None:
        """Make a dataset of boxes one of outlines; labels that are boxes alone are no labels of the task.

        Ultralytics refuses such labels, and with them the images, which agreement can do with.
        """
        if any(len(label["cls"]) != len(label["segments"]) for label in dataset.labels):
            self.outlined = False
            for label in dataset.labels:
                label |= {"cls": label["cls"][:0], "bboxes": label["bboxes"][:0], "segments": []}
        dataset.use_segments, dataset.use_obb = self.task == "segment", self.task == "obb"
        dataset.transforms = dataset.build_transforms(hyp=self.cfg)

    def _classify(self, name: str) -> tuple[Any, int]:
        from ultralytics.data.dataset import ClassificationDataset

        names = dict(self.classes) if self.classes else None
        dataset = ClassificationDataset(str(self.info[name]), self.cfg, augment=False, prefix=name, names=names)
        if not dataset.samples:
            raise FileNotFoundError("none of its folders is named after a class of the model")
        known = set(self.classes.values()) if self.classes else set(dataset.base.classes)
        wanted = [path for path, kind in dataset.base.samples if dataset.base.classes[kind] in known]
        total = len(wanted) if self.fraction == 1.0 and wanted else len(dataset.samples)
        return dataset, max(total, len(dataset.samples))


def _deep_images(split: Split) -> str | None:
    import cv2

    for file in split.files[:PEEKED]:
        if Path(file).suffix.lower() in (".png", ".tif", ".tiff"):
            image = cv2.imread(file, cv2.IMREAD_UNCHANGED)
            if image is not None and image.dtype != "uint8":
                return (
                    f"Images of the {split.name} split such as '{Path(file).name}' have {8 * image.itemsize} bits a "
                    f"channel; Ultralytics reads them as 8 bits, in training too, and so does this run."
                )
    return None
