# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pictures of shapes with labels: a data set for machines that can download nothing.

    python demo/shapes.py OUT_DIR

Writes an Ultralytics data set: ``shapes.yaml``, ``images/`` and ``labels/`` with ``train`` and ``val``. The same
seed gives the same pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import yaml

NAMES = ("circle", "square", "triangle", "star", "cross")
SIZE = 320


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the shapes data set.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=64, help="pictures of the train split")
    parser.add_argument("--val", type=int, default=64, help="pictures of the val split")
    arguments = parser.parse_args()
    print(make_dataset(arguments.folder, arguments.train, arguments.val))


def make_dataset(folder: Path, train: int, val: int) -> Path:
    """Write the data set and return the path of its data YAML."""
    for split, count, seed in (("train", train, 1), ("val", val, 2)):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture, boxes = draw_picture(np.random.default_rng((seed, index)))
            cv2.imwrite(str(folder / "images" / split / f"{index:05d}.jpg"), picture)
            lines = (f"{cls} {x:.6f} {y:.6f} {w:.6f} {h:.6f}" for cls, x, y, w, h in boxes)
            (folder / "labels" / split / f"{index:05d}.txt").write_text("\n".join(lines) + "\n")
    document = {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"}
    path = folder / "shapes.yaml"
    path.write_text(yaml.safe_dump({**document, "names": dict(enumerate(NAMES))}, sort_keys=False))
    return path


def draw_picture(random: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, float, float, float, float]]]:
    """Draw 2 to 9 shapes on a textured ground; boxes are class, centre, width and height in [0, 1]."""
    texture = cv2.resize(
        random.integers(0, 256, (10, 10, 3), dtype=np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC
    )
    noise = random.normal(0, random.uniform(2, 18), (SIZE, SIZE, 3))
    picture = np.clip(texture * 0.6 + noise + random.uniform(0, 80), 0, 255).astype(np.uint8)
    boxes: list[tuple[int, float, float, float, float]] = []
    taken: list[tuple[float, float, float]] = []
    for _ in range(int(random.integers(2, 10))):
        cls, radius = int(random.integers(len(NAMES))), float(np.exp(random.uniform(np.log(7), np.log(60))))
        x, y = random.uniform(radius, SIZE - radius, 2)
        if any(np.hypot(x - u, y - v) < 0.75 * (radius + r) for u, v, r in taken):
            continue
        outline = shape_outline(cls, random.uniform(0, 2 * np.pi)) * radius + (x, y)
        colour = tuple(int(c) for c in random.integers(0, 256, 3))
        if random.random() < 0.3:
            cv2.polylines(picture, [outline.astype(np.int32)], True, colour, max(2, int(radius / 6)), cv2.LINE_AA)
        else:
            cv2.fillPoly(picture, [outline.astype(np.int32)], colour, cv2.LINE_AA)
        (left, top), (right, bottom) = np.clip(outline.min(0), 0, SIZE), np.clip(outline.max(0), 0, SIZE)
        centre = ((left + right) / 2 / SIZE, (top + bottom) / 2 / SIZE)
        boxes.append((cls, *centre, (right - left) / SIZE, (bottom - top) / SIZE))
        taken.append((x, y, radius))
    if random.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (3, 3), 0)
    return picture, boxes


def shape_outline(cls: int, angle: float) -> np.ndarray:
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


if __name__ == "__main__":
    main()
