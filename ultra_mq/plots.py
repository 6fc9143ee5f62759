# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plots of a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ultra_mq.formats import FLOAT

if TYPE_CHECKING:
    from ultra_mq.report import Report, VariantResult
    from ultra_mq.sensitivity import Sensitivity

COLOURS = {"int8": "#2a78b5", FLOAT: "#d9822b"}


def plot_sensitivity(sensitivity: Sensitivity, variant: VariantResult, path: Path) -> None:
    """Draw the INT8 score of every layer in the order of the forward pass, coloured by a variant's plan.

    Args:
        sensitivity: Scores of the layers.
        variant: Variant whose plan gives the colours.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    quantized = variant.plan.quantized if variant.plan else {}
    names = list(sensitivity.scores)
    scores = [max(sensitivity.scores[name].values()) for name in names]
    figure = Figure(figsize=(max(8.0, 0.19 * len(names)), 5.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(names)), scores, color=[COLOURS[quantized.get(name, FLOAT)] for name in names])
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), [name.removesuffix(".conv") for name in names], rotation=90, fontsize=6)
    axes.set_xlim(-1, len(names))
    axes.set_ylabel("INT8 sensitivity score (log)")
    axes.set_title(f"Sensitivity of every layer, coloured by the plan of {variant.name}", loc="left")
    axes.legend(handles=[Patch(color=colour, label=name) for name, colour in COLOURS.items()], frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def plot_accuracy(report: Report, path: Path) -> None:
    """Draw agreement, and the change of mAP50-95 where there are labels, against bits.

    Args:
        report: Report with the variants.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    variants = [variant for variant in report.variants if variant.plan is not None]
    reference = report.reference.accuracy.map50_95
    panels = [("agreement with FP32", [variant.accuracy.agreement for variant in variants], 1.0)]
    if reference is not None:
        panels.append(("mAP50-95, points", [100 * (v.accuracy.map50_95 or 0.0) for v in variants], 100 * reference))
    figure = Figure(figsize=(5.0 * len(panels), 3.8), layout="constrained")
    for axes, (label, values, target) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        bits = [variant.plan.bits for variant in variants if variant.plan]
        axes.axhline(target, color="#888888", linewidth=1, linestyle="--", label="FP32")
        axes.plot(bits, values, "o", color=COLOURS["int8"])
        for variant, x, y in zip(variants, bits, values, strict=True):
            axes.annotate(variant.name, (x, y), xytext=(4, -11), textcoords="offset points", fontsize=8)
        axes.set_xlabel("effective bits")
        axes.set_ylabel(label)
        axes.set_xlim(7.5, 17.5)
        axes.margins(y=0.25)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
