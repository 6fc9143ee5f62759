# SPDX-License-Identifier: AGPL-3.0-or-later
"""The range of every layer's input, measured once for all plans.

Ranges are taken on the float network, with every quantizer off, so they do not depend on which layers a plan
quantizes: one pass over the images serves every budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ultra_mq.console import quiet, track
from ultra_mq.data import Batches
from ultra_mq.errors import DataError
from ultra_mq.model import PreparedModel

if TYPE_CHECKING:
    from torch import nn

Method = Literal["max", "mse"]

SEARCH_STEPS = 91
"""Candidates of the ``mse`` search: steps of 1 % of the largest value."""


@dataclass(frozen=True)
class Calibration:
    """Input ranges of all quantizable layers.

    Attributes:
        method: How the range was chosen, ``max`` or ``mse``.
        images: Number of images.
        amax: Layer name to the absolute input value that INT8 maps to 127; larger ones are clipped.
    """

    method: Method
    images: int
    amax: dict[str, float]


def calibrate(model: PreparedModel, batches: Batches, method: Method = "mse") -> Calibration:
    """Measure the input range of every quantizable layer.

    Args:
        model: Prepared model.
        batches: Calibration images.
        method: ``max`` takes the largest value seen; ``mse`` clips where the mean squared rounding and clipping
            error of the values seen is least.

    Raises:
        DataError: The input of a layer is not finite, or zero throughout.
    """
    import torch

    with quiet():
        from modelopt.torch.quantization.calib import HistogramCalibrator
    layers = dict(model.module.named_modules())
    histograms = {layer.name: HistogramCalibrator() for layer in model.quantizable}

    def collect(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if not torch.isfinite(inputs[0]).all():
                raise DataError(
                    f"The input of '{name}' is not finite on the calibration images. "
                    f"Check the weights of '{model.source}': a finished training run has finite ones."
                )
            histograms[name].collect(inputs[0])

        return hook

    handles = [layers[name].register_forward_pre_hook(collect(name)) for name in histograms]
    try:
        with torch.no_grad():
            for batch in track(batches, "Calibrating", len(batches)):
                model.module(batch["img"])
    finally:
        for handle in handles:
            handle.remove()
    amax = {}
    for name, histogram in histograms.items():
        counts, edges = histogram._calib_hist.double().cpu().numpy(), histogram._calib_bin_edges.double().cpu().numpy()
        amax[name] = float(edges[-1]) if method == "max" else least_squares_amax(counts, edges)
    if empty := [name for name, value in amax.items() if value == 0]:
        raise DataError(
            f"The input of {', '.join(empty[:3])} is zero on all calibration images, so it has no range. "
            f"Check the images of the train split and the weights of '{model.source}'."
        )
    return Calibration(method, len(batches.indices), amax)


def least_squares_amax(counts: np.ndarray, edges: np.ndarray, levels: int = 127) -> float:
    """Range with the least squared error of rounding and clipping, from a histogram of absolute values.

    The ``mse`` method of TensorRT's and ModelOpt's calibrators; ModelOpt 0.47's own search always returns its first
    candidate, 1/16 of the range, so it is done here.

    Args:
        counts: Histogram of absolute values, shape (N,).
        edges: Its bin edges, shape (N + 1,).
        levels: Positive quantization levels, 127 for symmetric INT8.

    Returns:
        The chosen range, between 10 % and 100 % of the largest value.
    """
    centers = (edges[1:] + edges[:-1]) / 2
    candidates = edges[-1] * np.linspace(0.1, 1.0, SEARCH_STEPS)
    errors = []
    for candidate in candidates:
        scale = candidate / levels
        rounded = np.clip(np.round(centers / scale), 0, levels) * scale
        errors.append(float(counts @ (rounded - centers) ** 2))
    return float(candidates[int(np.argmin(errors))])
