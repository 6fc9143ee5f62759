# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pictures in which float and quantized part most, and an even sample of all, drawn by Ultralytics side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultra_mq.core import ReportError, atomic_path, track
from ultra_mq.measure import (
    REFERENCE_CONFIDENCE,
    Classifications,
    Detections,
    ImageDifferences,
    Predictions,
    find_differences,
    sample_evenly,
)

if TYPE_CHECKING:
    from ultralytics.engine.results import Results

FOLDER = "gallery"

SIDE = 512
"""Pixels of the longer side of one panel."""

GAP = 8
"""Pixels between the panels."""

QUALITY = 82
"""Of the JPEG files: one with two panels takes 60 to 120 kB."""

USUAL = 3
"""For so many pictures with large differences there is one of the even sample."""

SAID = 3
"""Objects of a kind that a caption names."""


@dataclass(frozen=True)
class Picture:
    """One image as the float and the quantized model see it.

    Attributes:
        file: JPEG below the run folder: float on the left, quantized on the right. Objects on which they part have
            labels, the others thin lines alone.
        image: Name of the image.
        caption: What differs, in words.
        usual: Whether it is of the even sample, and not one of the worst.
    """

    file: str
    image: str
    caption: str
    usual: bool


def picture_legend(before: str, after: str) -> str:
    """What the two sides of a picture are."""
    return (
        f"Left: {before}. Right: {after}. Labelled objects are those on which the two part, at a confidence of "
        f"{REFERENCE_CONFIDENCE:g}; thin lines are what both draw."
    )


def draw_gallery(
    model: Predictions,
    reference: Predictions,
    files: Mapping[str, str],
    names: Mapping[int, str],
    folder: Path,
    count: int,
) -> tuple[Picture, ...]:
    """Draw the images on which two models part most, and an even sample.

    Args:
        model: What the quantized model says of the evaluation images.
        reference: What the float one says of them.
        files: Path of every image to its name in the predictions, see ``Split.names``.
        names: Class index to name.
        folder: Run folder; the pictures go to ``gallery`` in it.
        count: Images with large differences; a third as many of the even sample are drawn beside them.

    Returns:
        The pictures, the largest differences first. Images without any difference are not among the worst.

    Raises:
        ReportError: There is no image to draw.
    """
    found = find_differences(model, reference)
    if not found:
        raise ReportError("There is no image to draw. Evaluate on data with images, and see that they are still there.")
    worst = [one for one in found if one.differences][:count]
    chosen = [(one, False) for one in worst]
    shown = {one.image for one in worst}
    chosen += [(one, True) for one in sample_evenly(found, -(-count // USUAL)) if one.image not in shown]
    paths = {name: file for file, name in files.items()}
    pictures = []
    for number, (one, usual) in enumerate(track(chosen, "Drawing pictures", len(chosen)), start=1):
        file = f"{FOLDER}/{number:02d}-{Path(one.image).stem}.jpg"
        _draw(one, model, reference, Path(paths[one.image]), names, folder / file)
        pictures.append(Picture(file, one.image, _caption(one, model, reference, names), usual))
    return tuple(pictures)


def _caption(one: ImageDifferences, model: Predictions, reference: Predictions, names: Mapping[int, str]) -> str:
    if not one.differences:
        number = len(one.same)
        return f"the same {number} object{'s' if number != 1 else ''}" if isinstance(model, Detections) else "the same"
    words = []
    for kind, number in Counter(difference.kind for difference in one.differences).items():
        said = []
        for difference in [d for d in one.differences if d.kind == kind][:SAID]:
            before = None if difference.before is None else _name(reference, difference.before, names)
            after = None if difference.after is None else _name(model, difference.after, names)
            said.append(f"{before} to {after}" if kind == "flipped" else str(before or after))
        words.append(f"{number} {kind} ({', '.join(said)}{', ...' if number > SAID else ''})")
    return "; ".join(words)


def _name(found: Predictions, index: int, names: Mapping[int, str]) -> str:
    kind = int(found.classes[index])
    if isinstance(found, Classifications):
        confidence = float(np.exp(found.log_probabilities[index, kind]))
    else:
        confidence = float(found.scores[index])
    return f"{names.get(kind, str(kind))} {confidence:.2f}"


def _draw(
    one: ImageDifferences,
    model: Predictions,
    reference: Predictions,
    image: Path,
    names: Mapping[int, str],
    path: Path,
) -> None:
    import cv2
    from ultralytics.utils.patches import imread

    pixels = imread(str(image))
    if pixels is None:
        raise ReportError(f"'{image}' cannot be read any more. Put it back, and run again.")
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    small = cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    if small.ndim == 2 or small.shape[2] == 1:
        small = cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)
    parting = [(d.before, d.after) for d in one.differences]
    panels = []
    for side, found in ((0, reference), (1, model)):
        same = [pair[side] for pair in one.same]
        apart = [index for pair in parting if (index := pair[side]) is not None]
        drawn = small.copy()
        if isinstance(found, Classifications):
            drawn = _results(found, [*apart, *same], drawn, names, scale).plot(font_size=18)
        else:
            if same:
                drawn = _results(found, same, drawn, names, scale).plot(
                    conf=False, labels=False, line_width=1, kpt_radius=1
                )
            if apart:
                drawn = _results(found, apart, drawn, names, scale).plot(line_width=2, kpt_radius=4)
        panels.append(drawn)
    gap = np.full((small.shape[0], GAP, 3), 255, np.uint8)
    whole, encoded = cv2.imencode(".jpg", np.hstack([panels[0], gap, panels[1]]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert whole
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _results(
    found: Predictions, rows: Sequence[int], pixels: np.ndarray, names: Mapping[int, str], scale: float
) -> Results:
    """Some predictions of one image as Ultralytics' own results, in pixels of the picture that is drawn."""
    import torch
    from ultralytics.engine.results import Results

    made = Results(pixels, path="", names=dict(names))
    if isinstance(found, Classifications):
        made.update(probs=torch.tensor(np.exp(found.log_probabilities[rows[0]])))
        return made
    index = list(rows)
    boxes = torch.tensor(found.boxes[index] * scale, dtype=torch.float32)
    scores = torch.tensor(found.scores[index], dtype=torch.float32)[:, None]
    classes = torch.tensor(found.classes[index], dtype=torch.float32)[:, None]
    if found.task == "obb":
        boxes[:, :2] += boxes[:, 2:] / 2
        angles = torch.tensor(found.angles[index], dtype=torch.float32)[:, None]
        made.update(obb=torch.cat([boxes, angles, scores, classes], 1))
        return made
    boxes[:, 2:] += boxes[:, :2]
    keywords: dict[str, Any] = {"boxes": torch.cat([boxes, scores, classes], 1)}
    if found.task == "pose":
        points = torch.tensor(found.keypoints[index], dtype=torch.float32)
        points[..., :2] *= scale
        keywords["keypoints"] = points
    elif found.task == "segment":
        keywords["masks"] = _masks(found, index, pixels.shape[:2])
    made.update(**keywords)
    return made


def _masks(found: Detections, rows: list[int], shape: tuple[int, int]) -> Any:
    """Masks of a letterboxed image in pixels of the picture, shape (N, H, W)."""
    import torch
    from pycocotools import mask
    from ultralytics.utils.ops import scale_masks

    encoded = [{"size": found.mask_sizes[row].tolist(), "counts": found.masks[row]} for row in rows]
    pixels = torch.tensor(mask.decode(encoded)).permute(2, 0, 1)
    return (scale_masks(pixels[None].float(), shape)[0] > 0.5).float()
