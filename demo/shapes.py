# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pictures of shapes with labels of any task: data sets for machines that can download nothing.

    python demo/shapes.py OUT_DIR --task segment

Writes an Ultralytics data set: ``shapes.yaml``, ``images/`` and ``labels/`` with ``train`` and ``val``; for classifiers
a folder a class in ``train`` and ``val``. The same seed gives the same pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

NAMES = ("circle", "square", "triangle", "star", "cross")
SIZE = 320
CROP = 96
"""Pixels of a classifier's picture."""

SUFFIXES = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
"""What Ultralytics appends to the name of a model, by its task."""

POSE = {"kpt_shape": [5, 3], "flip_idx": [0, 1, 4, 3, 2]}
"""Keypoints of a shape: its centre, and its topmost, rightmost, lowest and leftmost points."""

Outline = np.ndarray
"""Corners of a shape in pixels, shape (N, 2)."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the shapes data set.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=64, help="pictures of the train split")
    parser.add_argument("--val", type=int, default=64, help="pictures of the val split")
    parser.add_argument("--task", choices=(*LABELS, "classify"), default="detect")
    arguments = parser.parse_args()
    print(make_dataset(arguments.folder, arguments.train, arguments.val, arguments.task))


def make_dataset(folder: Path, train: int, val: int, task: str = "detect") -> Path:
    """Write the data set and return what Ultralytics takes as ``data``: a YAML, or the folder for classifiers."""
    for split, count, seed in (("train", train, 1), ("val", val, 2)):
        for index in range(count):
            random = np.random.default_rng((seed, index))
            if task == "classify":
                picture, cls = draw_crop(random, index % len(NAMES))
                file = folder / split / NAMES[cls] / f"{index:05d}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(file), picture)
                continue
            picture, shapes = draw_shapes(random)
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / "images" / split / f"{index:05d}.jpg"), picture)
            lines = (" ".join([str(cls), *(f"{v:.6f}" for v in LABELS[task](outline))]) for cls, outline in shapes)
            (folder / "labels" / split / f"{index:05d}.txt").write_text("\n".join(lines) + "\n")
    if task == "classify":
        return folder
    document: dict[str, Any] = {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"}
    document |= POSE if task == "pose" else {}
    path = folder / "shapes.yaml"
    path.write_text(yaml.safe_dump({**document, "names": dict(enumerate(NAMES))}, sort_keys=False))
    return path


def draw_picture(random: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, float, float, float, float]]]:
    """Draw 2 to 9 shapes on a textured ground; boxes are class, centre, width and height in [0, 1]."""
    picture, shapes = draw_shapes(random)
    return picture, [(cls, *box_label(outline)) for cls, outline in shapes]  # type: ignore[misc]


def draw_shapes(random: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, Outline]]]:
    """Draw 2 to 9 shapes on a textured ground; each with its class and its outline in pixels."""
    picture = draw_ground(random, SIZE)
    shapes: list[tuple[int, Outline]] = []
    taken: list[tuple[float, float, float]] = []
    for _ in range(int(random.integers(2, 10))):
        cls, radius = int(random.integers(len(NAMES))), float(np.exp(random.uniform(np.log(7), np.log(60))))
        x, y = random.uniform(radius, SIZE - radius, 2)
        if any(np.hypot(x - u, y - v) < 0.75 * (radius + r) for u, v, r in taken):
            continue
        outline = shape_outline(cls, random.uniform(0, 2 * np.pi)) * radius + (x, y)
        draw_shape(picture, outline, radius, random)
        shapes.append((cls, outline))
        taken.append((x, y, radius))
    if random.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (3, 3), 0)
    return picture, shapes


def draw_crop(random: np.random.Generator, cls: int) -> tuple[np.ndarray, int]:
    """Draw one shape on a textured ground, as classifiers see it."""
    picture = draw_ground(random, CROP)
    radius = float(random.uniform(14, 40))
    x, y = random.uniform(radius, CROP - radius, 2)
    draw_shape(picture, shape_outline(cls, random.uniform(0, 2 * np.pi)) * radius + (x, y), radius, random)
    return picture, cls


def draw_ground(random: np.random.Generator, size: int) -> np.ndarray:
    """A square picture of soft colours and noise."""
    texture = cv2.resize(
        random.integers(0, 256, (10, 10, 3), dtype=np.uint8), (size, size), interpolation=cv2.INTER_CUBIC
    )
    noise = random.normal(0, random.uniform(2, 18), (size, size, 3))
    picture: np.ndarray = np.clip(texture * 0.6 + noise + random.uniform(0, 80), 0, 255).astype(np.uint8)
    return picture


def draw_shape(picture: np.ndarray, outline: Outline, radius: float, random: np.random.Generator) -> None:
    """Paint a shape, filled or as a line."""
    colour = tuple(int(c) for c in random.integers(0, 256, 3))
    if random.random() < 0.3:
        cv2.polylines(picture, [outline.astype(np.int32)], True, colour, max(2, int(radius / 6)), cv2.LINE_AA)
    else:
        cv2.fillPoly(picture, [outline.astype(np.int32)], colour, cv2.LINE_AA)


def shape_outline(cls: int, angle: float) -> Outline:
    """Corners of a shape of radius 1, rotated by ``angle``, shape (N, 2)."""
    if cls == 0:
        corners = [(np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 40, endpoint=False)]
    elif cls == 4:
        arm = 0.32
        corners = [
            (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
            (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
        ]  # fmt: skip
    else:
        count, inner = {1: (4, 1.0), 2: (3, 1.0), 3: (10, 0.42)}[cls]
        radii = [1.0 if index % 2 == 0 or inner == 1.0 else inner for index in range(count)]
        turns = np.linspace(0, 2 * np.pi, count, endpoint=False)
        corners = [(r * np.cos(t), r * np.sin(t)) for r, t in zip(radii, turns, strict=True)]
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array(corners) @ np.array([[cosine, sine], [-sine, cosine]])


def box_label(outline: Outline) -> list[float]:
    """Centre, width and height in [0, 1]."""
    (left, top), (right, bottom) = np.clip(outline.min(0), 0, SIZE), np.clip(outline.max(0), 0, SIZE)
    return [(left + right) / 2 / SIZE, (top + bottom) / 2 / SIZE, (right - left) / SIZE, (bottom - top) / SIZE]


def mask_label(outline: Outline) -> list[float]:
    """Corners of the outline in [0, 1]."""
    return [float(v) for v in np.clip(outline / SIZE, 0, 1).ravel()]


def pose_label(outline: Outline) -> list[float]:
    """The box, and x, y and visibility of each keypoint; see ``POSE``."""
    x, y = outline.T
    points = [outline.mean(0), *(outline[index] for index in (y.argmin(), x.argmax(), y.argmax(), x.argmin()))]
    return [*box_label(outline), *(float(v) for p in points for v in (*np.clip(p / SIZE, 0, 1), 2))]


def rotated_label(outline: Outline) -> list[float]:
    """Corners of the smallest rotated box in [0, 1]."""
    return mask_label(cv2.boxPoints(cv2.minAreaRect(outline.astype(np.float32))))


LABELS: dict[str, Callable[[Outline], list[float]]] = {
    "detect": box_label,
    "segment": mask_label,
    "pose": pose_label,
    "obb": rotated_label,
}


if __name__ == "__main__":
    main()
