# SPDX-License-Identifier: AGPL-3.0-or-later
"""ModelOpt's ONNX path as a job of its own: a checkpoint or an FP32 ONNX file to a quantized file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ultra_mq.graph import (
    Graph,
    PtqSettings,
    describe_graph,
    export_onnx,
    load_calibration,
    ptq,
    save_calibration,
)
from ultra_mq.jobs.exported_data import data_of
from ultra_mq.prepare import Batches, Data, choose, size_text
from ultra_mq.runtimes import read_exported
from ultra_mq.session import Recipe, open_session

if TYPE_CHECKING:
    import numpy as np


def ptq_file(
    recipe: Recipe, settings: PtqSettings, calibration: Path | None, output: Path | None, task: str | None = None
) -> Graph:
    """Quantize the recipe's model, a checkpoint or an FP32 ONNX file, into a file named after the settings.

    The calibration tensor is written beside the result and used again by the next call with the same images.

    Args:
        recipe: Model, data, image size, seed, and the number of calibration images.
        settings: How to quantize.
        calibration: ``.npy`` tensor to use in place of the recipe's images.
        output: File to write; ``<model>-<settings>.onnx`` in the current folder by default.
        task: Task of an ONNX file that does not say its own.

    Raises:
        UltraMQError: The input cannot be used, or ModelOpt refused.
    """
    model = Path(recipe.model)
    path = output or Path(f"{model.stem}-{settings.tag}.onnx")
    if model.suffix == ".onnx":
        exported = read_exported(model)
        data = None if calibration and exported.task else data_of(exported, recipe, task)
        if calibration is not None:
            pixels = load_calibration(calibration, exported.imgsz or recipe.size, exported.channels)
        else:
            assert data is not None
            pixels = _calibration_pixels(data, recipe, path)
        with tempfile.TemporaryDirectory(prefix="ultra-mq-onnx-") as folder:
            described = describe_graph(model, Path(folder) / model.name, data)
            return ptq(described, path, pixels, settings, source=model)
    session = open_session(recipe)
    fp32 = path.with_name(f"{model.stem}-fp32.onnx")
    size, channels = session.recipe.size, session.model.channels
    if calibration is not None:
        pixels = load_calibration(calibration, size, channels)
    else:
        pixels = _calibration_pixels(session.data, session.recipe, path)
    export_onnx(session.model.module, fp32, size, recipe.export.batch, dynamic=recipe.export.dynamic)
    return ptq(fp32, path, pixels, settings)


def _calibration_pixels(data: Data, recipe: Recipe, path: Path) -> np.ndarray:
    """The recipe's calibration images, from the tensor beside a file where it is there."""
    split = data.calibration
    batches = Batches(split, choose(split, recipe.calibration.images, recipe.seed), recipe.batch)
    tensor = path.with_name(f"calibration-{size_text(data.imgsz)}-{batches.fingerprint[:8]}.npy")
    return load_calibration(tensor, data.imgsz, data.channels) if tensor.exists() else save_calibration(batches, tensor)
