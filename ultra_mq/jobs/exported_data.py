# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data for files that were exported already, by what they say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ultra_mq.core import DataError, RecipeError
from ultra_mq.graph import metadata_of
from ultra_mq.prepare import TASKS, Data, height_width, load_data, load_image
from ultra_mq.runtimes import Backend, Exported, read_exported
from ultra_mq.session import AUTO_DATA, DEFAULT_IMGSZ, Recipe, check_fit, small_data


def take_task(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """A ``task=`` among overrides, for files that do not say theirs, and the others.

    Raises:
        RecipeError: It is no task of Ultralytics that is known here.
    """
    task = None
    others = []
    for override in overrides:
        if override.startswith("task="):
            task = override.partition("=")[2]
        else:
            others.append(override)
    if task is not None and task not in TASKS:
        raise RecipeError(f"task={task} is unknown. Use one of {', '.join(TASKS)}.")
    return task, others


def data_of(exported: Exported, recipe: Recipe, task: str | None = None) -> Data:
    """The data of a recipe as an exported file takes it: its task, shape and channels.

    Args:
        exported: The file.
        recipe: Names the data, the fraction, and the image size of a file with free axes.
        task: Task of a file that does not say its own.

    Raises:
        DataError: The file does not say its task, the data cannot be used, or it does not fit.
    """
    kind = exported.task or task
    if kind is None:
        raise DataError(
            f"'{exported.path}' has no metadata of Ultralytics, so it does not say what it is. Add task=detect, or "
            f"segment, pose, obb, classify; class names are taken from the data."
        )
    source = recipe.data
    if source == AUTO_DATA:
        source = small_data(str(exported.path), kind, exported.names or {}, None)
    imgsz = recipe.size if recipe.imgsz is not None or exported.imgsz is None else exported.imgsz
    data = load_data(
        source,
        imgsz,
        1 if kind == "classify" else exported.stride,
        task=kind,
        fraction=recipe.fraction,
        single_cls=bool(recipe.single_cls),
        classes=exported.names,
    )
    check_fit(str(exported.path), exported.names if kind != "classify" else None, exported.channels, source, data)
    return data


def image_for(path: Path, image: Path | None, shape: tuple[int, ...] | None = None) -> np.ndarray | None:
    """A picture as a graph takes it, as often as it takes images; None for none.

    Args:
        path: ONNX file.
        image: Picture.
        shape: Shape of the input, for a graph with free axes.

    Raises:
        UltraMQError: The graph or the picture cannot be read.
    """
    exported = read_exported(path)
    if image is None:
        return None
    size = shape[2:] if shape else height_width(exported.imgsz or DEFAULT_IMGSZ)
    pixels = load_image(image, (size[0], size[1]))
    if exported.channels == 1:
        # Ultralytics reads such images as grey; these are the weights of OpenCV and ITU-R BT.601.
        pixels = np.tensordot(pixels, np.array([0.299, 0.587, 0.114], np.float32), axes=((1,), (0,)))[:, None]
    return np.repeat(pixels, shape[0] if shape else exported.batch, axis=0)


def described(backend: Backend, data: Data) -> Backend:
    """A backend whose metadata has what its file lacks, from the data."""
    backend.metadata = {**metadata_of(data, backend.batch), **backend.metadata}  # type: ignore[misc]
    return backend
