# SPDX-License-Identifier: AGPL-3.0-or-later
"""COCO annotation files that belong to a data set, found by the images that they describe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PREFIXES = {"detect": "instances_", "segment": "instances_", "pose": "person_keypoints_"}
"""How annotation files of a task are called; there are none of other tasks."""

NEEDED = {"segment": "segmentation", "pose": "keypoints"}
"""What every object of an annotation file must have to prove a task."""


def find_annotations(
    root: Path, images: Sequence[Path], called: Sequence[str], classes: Mapping[int, str], task: str = "detect"
) -> tuple[Path | None, str | None]:
    """Find the COCO annotation file that describes exactly these images and classes.

    Ultralytics looks at the path of the split alone; here the file names decide, so that a slice or a copy of
    COCO is scored as COCO. Files that are named after the images' folder are looked at first: those of train are large.

    Args:
        root: Root folder of the data set.
        images: Images to describe.
        called: What they are called in detections, see ``Split.names``.
        classes: Class index to class name.
        task: Ultralytics task.

    Returns:
        The first file under ``root/annotations`` that knows every image and class, or None; and why a file that knows
        every image is left out.
    """
    prefix = PREFIXES.get(task)
    if prefix is None:
        return None, None
    folders = {path.parent.name for path in images}
    files = sorted((root / "annotations").glob(f"{prefix}*.json"))
    reason = None
    for file in sorted(files, key=lambda file: file.stem.removeprefix(prefix) not in folders):
        try:
            document = json.loads(file.read_text())
            if match_images(document["images"], called) is None:
                continue
            known = {category["name"] for category in document["categories"]}
        except (ValueError, KeyError, TypeError, AttributeError, OSError):  # no COCO annotations, whatever it is
            continue
        missing = [name for name in classes.values() if name not in known]
        needed = NEEDED.get(task)
        if needed and not all(needed in entry for entry in document.get("annotations", ())):
            reason = f"There is no COCO table: '{file}' has objects without '{needed}'."
            continue
        if not missing:
            return file, None
        reason = (
            f"There is no COCO table: '{file}' does not know the classes {', '.join(missing[:3])}"
            f"{', ...' if missing[3:] else ''}. Name the classes in the data YAML as the annotation file does."
        )
    return None, reason


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
