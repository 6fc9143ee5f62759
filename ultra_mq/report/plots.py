# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plots of a report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ultra_mq.core import FLOAT

COLOURS = {"int8": "#2a78b5", "fp8": "#3f9b57", FLOAT: "#d9822b"}
OTHER = "#8a5fb0"


def plot_sensitivity(scores: Mapping[str, float], formats: Mapping[str, str], name: str, path: Path) -> None:
    """Draw the INT8 score of every layer in the order of the forward pass, coloured by a plan.

    Args:
        scores: Layer name to score.
        formats: Layer name to format, of the layers that the plan quantizes.
        name: Name of the variant that has the plan.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(max(8.0, 0.19 * len(scores)), 5.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(
        range(len(scores)),
        list(scores.values()),
        color=[COLOURS.get(formats.get(layer, FLOAT), OTHER) for layer in scores],
    )
    axes.set_yscale("log")
    axes.set_xticks(range(len(scores)), [layer.removesuffix(".conv") for layer in scores], rotation=90, fontsize=6)
    axes.set_xlim(-1, len(scores))
    axes.set_ylabel("INT8 sensitivity score (log)")
    axes.set_title(f"Sensitivity of every layer, coloured by the plan of {name}", loc="left")
    axes.legend(handles=[Patch(color=colour, label=label) for label, colour in COLOURS.items()], frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def plot_against_bits(
    bits: Mapping[str, float], panels: Mapping[str, tuple[Sequence[float], float]], path: Path
) -> None:
    """Draw measures of several variants against their bits, one panel a measure.

    Args:
        bits: Variant name to effective bits.
        panels: Title of a measure to its values, in the order of ``bits``, and the value of the float model.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(panels), 3.8), layout="constrained")
    for axes, (label, (values, target)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        axes.axhline(target, color="#888888", linewidth=1, linestyle="--", label="FP32")
        axes.plot(list(bits.values()), values, "o", color=COLOURS["int8"])
        for (variant, x), y in zip(bits.items(), values, strict=True):
            axes.annotate(variant, (x, y), xytext=(4, -11), textcoords="offset points", fontsize=8)
        axes.set_xlabel("effective bits")
        axes.set_ylabel(label)
        axes.set_xlim(7.5, 17.5)
        axes.margins(y=0.25)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def plot_pareto(
    points: Mapping[str, tuple[float, float]], front: Collection[str], labels: tuple[str, str], path: Path
) -> None:
    """Draw models by cost and loss, with the front of those that no other beats in both.

    Args:
        points: Variant name to cost and points lost.
        front: Names of the variants on the front.
        labels: What the axes count.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    line = sorted(points[name] for name in front)
    axes.step([x for x, _ in line], [y for _, y in line], where="post", color="#888888", linewidth=1)
    for name, (x, y) in points.items():
        axes.plot(x, y, "o", color=COLOURS["int8"] if name in front else COLOURS[FLOAT])
        axes.annotate(name, (x, y), xytext=(5, -11), textcoords="offset points", fontsize=8)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.invert_yaxis()
    axes.margins(0.2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
