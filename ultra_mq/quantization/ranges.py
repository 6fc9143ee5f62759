# SPDX-License-Identifier: AGPL-3.0-or-later
"""The range of every layer's input, measured once for all plans.

Ranges are taken on the float network, with every quantizer off, so they do not depend on which layers a plan
quantizes: one pass over the images serves every budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ultra_mq.core import FORMATS, DataError, quiet, track
from ultra_mq.prepare import (
    Batches,
    Op,
    Placement,
    PreparedModel,
    observe_flow,
    place_joins,
    shared_ranges,
    sites_of,
)

if TYPE_CHECKING:
    import torch
    from modelopt.torch.quantization.calib import HistogramCalibrator

Method = Literal["max", "mse", "entropy", "percentile"]

PERCENTILE = 99.99
"""Share of the values that ``percentile`` does not clip."""

SEARCH_STEPS = 91
"""Candidates of the ``mse`` search: steps of 1 % of the largest value."""

ENTROPY_CANDIDATES = 64
"""Candidates of the ``entropy`` search."""


@dataclass(frozen=True)
class Calibration:
    """Ranges of everything that a plan can quantize.

    Attributes:
        method: How the ranges were chosen.
        images: Number of images.
        amax: Layer or quantizer of a join (see ``placement.Site``) to the absolute value that INT8 maps to 127; larger
            ones are clipped.
        largest: The same to the largest absolute value seen.
    """

    method: Method
    images: int
    amax: dict[str, float]
    largest: dict[str, float]

    def amax_for(self, site: str, format_name: str) -> float:
        """Absolute value that a format maps to its largest one."""
        return (self.amax if FORMATS[format_name].clips else self.largest)[site]


def calibrate(
    model: PreparedModel, batches: Batches, method: Method = "mse", placement: Placement = "runtime"
) -> Calibration:
    """Measure the input range of every quantizable layer, and of the joins between them.

    Args:
        model: Prepared model.
        batches: Calibration images.
        method: ``max`` takes the largest value seen; ``mse`` clips where the mean squared rounding and clipping
            error of the values seen is least, over all tensors that share the range; ``entropy`` and ``percentile``
            (99.99 %) are ModelOpt's, the former after Migacz, "8-bit inference with TensorRT", GTC 2017.
        placement: ``runtime`` gives what concats and pools copy one range; otherwise every layer has its own.

    Raises:
        DataError: The input of a layer is not finite, or zero throughout.
    """
    import torch

    with quiet():
        from modelopt.torch.quantization.calib import HistogramCalibrator
    flow = model.flow
    layers = dict.fromkeys((layer.name for layer in model.quantizable), "any")
    wanted = {*layers, *(place_joins(flow, layers) if placement == "runtime" else ())}
    groups = [group & wanted for group in shared_ranges(flow, placement) if group & wanted]
    group_of = {site: group for group in groups for site in group}
    # A tensor of each group by the operand that reads it first: numbers of tensors hold for one pass alone.
    histograms: dict[frozenset[str], dict[tuple[str, int, int], HistogramCalibrator]] = {group: {} for group in groups}
    for batch in track(batches, "Calibrating", len(batches)):
        seen: set[tuple[frozenset[str], int]] = set()

        def collect(op: Op, inputs: tuple[torch.Tensor, ...], seen: set[tuple[frozenset[str], int]] = seen) -> None:
            for operand, (site, tensor) in enumerate(zip(sites_of(op), inputs, strict=False)):
                group = group_of.get(site.name)
                if group is None or (group, site.tensor) in seen:
                    continue
                seen.add((group, site.tensor))
                if not torch.isfinite(tensor).all():
                    raise DataError(
                        f"The input of '{op.module}' is not finite on the calibration images. "
                        f"Check the weights of '{model.source}': a finished training run has finite ones."
                    )
                key = (site.name, op.index, operand)
                histograms[group].setdefault(key, HistogramCalibrator()).collect(tensor)

        observe_flow(model.module, batch["img"], collect)
    amax: dict[str, float] = {}
    largest: dict[str, float] = {}
    for group in groups:
        members = list(histograms[group].values())
        if not layers.keys() & group and choose_range(members, "max") == 0:
            # Behind a dead layer: every range holds zero exactly.
            largest |= dict.fromkeys(group, 1.0)
            amax |= dict.fromkeys(group, 1.0)
            continue
        largest |= dict.fromkeys(sorted(group), choose_range(members, "max"))
        amax |= dict.fromkeys(sorted(group), choose_range(members, method))
    if empty := [name for name, value in amax.items() if value == 0]:
        raise DataError(
            f"The input of {', '.join(empty[:3])} is zero on all calibration images, so it has no range. "
            f"Check the images of the train split and the weights of '{model.source}'."
        )
    return Calibration(method, len(batches.indices), amax, largest)


def choose_range(histograms: Sequence[HistogramCalibrator], method: Method) -> float:
    """Range of a tensor, or of several that share it, from histograms of absolute values; see ``calibrate``."""
    if method in ("entropy", "percentile"):
        # ModelOpt's search takes seconds a tensor with every bin as a candidate.
        strides = [max(1, len(histogram._calib_hist) // ENTROPY_CANDIDATES) for histogram in histograms]
        return max(
            float(histogram.compute_amax(method, percentile=PERCENTILE, stride=stride))
            for histogram, stride in zip(histograms, strides, strict=True)
        )
    counted = [
        (histogram._calib_hist.double().cpu().numpy(), histogram._calib_bin_edges.double().cpu().numpy())
        for histogram in histograms
    ]
    return max(float(edges[-1]) for _, edges in counted) if method == "max" else least_squares_amax(counted)


def least_squares_amax(histograms: Sequence[tuple[np.ndarray, np.ndarray]], levels: int = 127) -> float:
    """Range with the least squared error of rounding and clipping, summed over the tensors that share it.

    The ``mse`` method of TensorRT's and ModelOpt's calibrators; ModelOpt 0.47's own search always returns its first
    candidate, 1/16 of the range, so it is done here.

    Args:
        histograms: Of each tensor the counts of absolute values, shape (N,), and the bin edges, shape (N + 1,).
        levels: Positive quantization levels, 127 for symmetric INT8.

    Returns:
        The chosen range, between 10 % and 100 % of the largest value.
    """
    largest = max(float(edges[-1]) for _, edges in histograms)
    candidates = largest * np.linspace(0.1, 1.0, SEARCH_STEPS)
    errors = np.zeros(SEARCH_STEPS)
    for counts, edges in histograms:
        centers = (edges[1:] + edges[:-1]) / 2
        for step, candidate in enumerate(candidates):
            scale = candidate / levels
            rounded = np.clip(np.round(centers / scale), 0, levels) * scale
            errors[step] += counts @ (rounded - centers) ** 2
    return float(candidates[int(np.argmin(errors))])
