# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sensitivity that a person can use: what each layer and block costs, what it hurts, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ultra_mq.core import FLOAT, atomic_path, csv_text, write_text
from ultra_mq.measure import Accuracy, compare, evaluate, load_accuracy, save_accuracy
from ultra_mq.plan import LatencyModel, Sensitivity, layer_sizes, make_plan
from ultra_mq.quantization import Calibration
from ultra_mq.report import plots
from ultra_mq.session import (
    Artefacts,
    Session,
    calibrate_layers,
    open_choices,
    prices_of,
    score_layers,
    solve_bits,
    with_recipe,
)

if TYPE_CHECKING:
    from torch import nn

FAR_OUTLIERS = 4.0
"""Largest value over the calibrated range from which on a layer's clipping deserves a look."""


@dataclass(frozen=True)
class LayerRow:
    """One layer in one format, or one block.

    Attributes:
        name: Module path.
        block: Top-level module that it is part of, with its class.
        format: Format that was scored.
        score: Sensitivity score.
        score_percent: Share of the sum of all scores.
        parameters_percent: Share of the weights of all quantizable layers.
        macs_percent: Share of their multiply-accumulates.
        time_percent: Share of the float model's latency on the target; None where that was not measured.
        gain_percent: What the format saves of that latency, negative where it costs; None likewise.
        range: Absolute input value that INT8 maps to 127; 0 for a block.
        outliers: Largest absolute input value over that range.
        drop: Points of agreement lost when only this layer is quantized; None where that was not measured.
        action: What to do with it.
    """

    name: str
    block: str
    format: str
    score: float
    score_percent: float
    parameters_percent: float
    macs_percent: float
    time_percent: float | None
    gain_percent: float | None
    range: float
    outliers: float
    drop: float | None
    action: str


@dataclass(frozen=True)
class LayerTable:
    """Sensitivity of a model.

    Attributes:
        method: How the scores were made.
        bits: Budget that the actions are for.
        layers: The most sensitive first.
        blocks: Sums over top-level modules, the most sensitive first.
        checked: Number of layers whose real loss was measured.
        rank_correlation: Spearman's, of scores against real losses; None below three layers.
    """

    method: str
    bits: float
    layers: tuple[LayerRow, ...]
    blocks: tuple[LayerRow, ...]
    checked: int
    rank_correlation: float | None


def make_layer_table(session: Session, bits: float, truth: int = 0, latency: LatencyModel | None = None) -> LayerTable:
    """Put together what is known of every layer.

    Args:
        session: The run.
        bits: Budget that the actions are for.
        truth: Layers whose real loss of agreement is measured, spread evenly over the ranking.
        latency: Latencies of the layers on a target, where they are wanted.
    """
    model, recipe = session.model, session.recipe
    sensitivity = score_layers(session)
    floats = {layer.name for layer in solve_bits(session, open_choices(session), bits).layers if layer.format == FLOAT}
    drops = measure_alone(session, sample_layers(sensitivity, truth)) if truth else {}
    calibration = calibrate_layers(session)
    total = sum(score for by_format in sensitivity.scores.values() for score in by_format.values())
    weights, macs = (layer_sizes(model, name, recipe.size) for name in ("weights", "macs"))
    float_ms = latency.predict({}) if latency else 0.0
    rows = []
    for layer in model.quantizable:
        for option, score in sensitivity.scores[layer.name].items():
            times = latency.layers_ms[layer.name] if latency else {}
            outliers = calibration.largest[layer.name] / calibration.amax[layer.name]
            rows.append(
                LayerRow(
                    name=layer.name,
                    block=_block_of(session, layer.name),
                    format=option,
                    score=score,
                    score_percent=100 * score / total,
                    parameters_percent=100 * weights[layer.name] / sum(weights.values()),
                    macs_percent=100 * macs[layer.name] / sum(macs.values()),
                    time_percent=100 * times[FLOAT] / float_ms if latency else None,
                    gain_percent=100 * (times[FLOAT] - times[option]) / float_ms if latency else None,
                    range=calibration.amax[layer.name],
                    outliers=outliers,
                    drop=drops.get((layer.name, option)),
                    action=_action(layer.name in floats, outliers, calibration),
                )
            )
    layers = tuple(sorted(rows, key=lambda row: -row.score))
    return LayerTable(
        sensitivity.method, bits, layers, _by_block(layers), len(drops), _rank_correlation(sensitivity, drops)
    )


def write_layer_table(table: LayerTable, folder: Path, title: str) -> None:
    """Write sensitivity.csv, blocks.csv, sensitivity.md and sensitivity.png into a folder, each atomically."""
    write_text(folder / "sensitivity.csv", _csv(table.layers))
    write_text(folder / "blocks.csv", _csv(table.blocks))
    with atomic_path(folder / "sensitivity.png") as temporary:
        scores = {row.name: row.score for row in sorted(table.layers, key=lambda row: _natural(row.name))}
        kept = {row.name: row.format for row in table.layers if not row.action.startswith("keep")}
        plots.plot_sensitivity(scores, kept, f"{table.bits:g} bits", temporary)
    lines = [f"# Sensitivity of {title}", "", f"Method `{table.method}`; actions for {table.bits:g} bits."]
    if table.rank_correlation is not None:
        lines[-1] += (
            f" Checked on {table.checked} layers: the rank correlation of the scores with the agreement that is really "
            f"lost when only that layer is quantized is {table.rank_correlation:.2f}."
        )
    for heading, rows in (("Blocks", table.blocks), ("Layers", table.layers)):
        lines += ["", f"## {heading}", "", *markdown_rows(rows)]
    write_text(folder / "sensitivity.md", "\n".join([*lines, "", "![scores](sensitivity.png)", ""]))


COLUMNS = {
    "name": "layer", "block": "block", "format": "format", "score_percent": "score %",
    "parameters_percent": "parameters %", "macs_percent": "MACs %", "time_percent": "time %",
    "gain_percent": "gain %", "range": "range", "outliers": "outliers", "drop": "lost points", "action": "action",
}  # fmt: skip
"""Fields of a row that stand in tables, with their headings."""


LAYER_CONSOLE_COLUMNS = (
    "name",
    "score_percent",
    "parameters_percent",
    "time_percent",
    "gain_percent",
    "drop",
    "action",
)
"""Fields that fit a terminal of 80 characters."""


def table_cells(rows: Sequence[LayerRow], columns: Sequence[str] = tuple(COLUMNS)) -> tuple[list[str], list[list[str]]]:
    """Headings and formatted cells; columns without any value are left out."""
    shown = [name for name in columns if any(getattr(row, name) not in (None, "", 0.0) for row in rows)]
    return [COLUMNS[name] for name in shown], [[_cell(getattr(row, name)) for name in shown] for row in rows]


def markdown_rows(rows: Sequence[LayerRow]) -> list[str]:
    """A Markdown table."""
    headings, cells = table_cells(rows)
    return [f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *cells)]


def sample_layers(sensitivity: Sensitivity, count: int) -> list[tuple[str, str]]:
    """Layers with a format each, spread evenly over the ranking of the scores."""
    order = sorted(
        ((layer, option) for layer, by_format in sensitivity.scores.items() for option in by_format),
        key=lambda pair: sensitivity.scores[pair[0]][pair[1]],
    )
    count = min(count, len(order))
    return [order[round(index * (len(order) - 1) / max(count - 1, 1))] for index in range(count)]


def measure_alone(session: Session, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """What is lost on the evaluation images when one layer alone is quantized: points of agreement.

    Of a classifier, whose classes hardly ever change by one layer, the shift of log-probabilities, in 0.01 nats.

    Args:
        session: The run; biases are left alone.
        pairs: Layers with a format each.
    """
    recipe = session.recipe
    uncorrected = recipe.calibration.model_copy(update={"bias_correction": 0})
    alone = with_recipe(session, recipe.model_copy(update={"calibration": uncorrected}))
    prices = prices_of(session, "weights")
    key = {
        **session.evaluation_key,
        "model": session.model.fingerprint,
        "calibration": asdict(calibrate_layers(session)),
        "placement": recipe.placement,
        "device": session.device.partition(":")[0],
    }

    def run(module: nn.Module, label: str) -> Accuracy:
        return evaluate(module, session.data, label=label, device=session.device, batch=recipe.batch, table=False)

    def make_reference(entry: Path) -> None:
        save_accuracy(run(session.model.module, "Evaluating float"), entry)

    drops = {}
    with session.stage("Measure layers alone"):
        reference = load_accuracy(session.cache.folder("accuracy", {**key, "alone": None}, make_reference)).predictions
        for number, pair in enumerate(pairs, start=1):

            def make(entry: Path, pair: tuple[str, str] = pair, label: str = f"Layer {number} of {len(pairs)}") -> None:
                plan = make_plan(session.model, dict([pair]), prices, why="user", placement=recipe.placement)
                found = compare(run(Artefacts(alone, plan).module(), label), reference)
                lost = 1 - (found.agreement or 0.0) if found.shift is None else found.shift
                (entry / "drop.json").write_text(json.dumps(100 * lost))

            entry = session.cache.folder("alone", {**key, "layer": pair}, make)
            drops[pair] = float(json.loads((entry / "drop.json").read_text()))
    return drops


def _rank_correlation(sensitivity: Sensitivity, drops: dict[tuple[str, str], float]) -> float | None:
    from scipy.stats import spearmanr

    if len(drops) < 3:
        return None
    return float(spearmanr([sensitivity.scores[layer][option] for layer, option in drops], list(drops.values()))[0])


def _block_of(session: Session, layer: str) -> str:
    path = ".".join(layer.split(".")[:2])
    return f"{path} {type(session.model.module.get_submodule(path)).__name__}"


def _action(stays_float: bool, outliers: float, calibration: Calibration) -> str:
    words = "keep in float" if stays_float else "quantize"
    if outliers >= FAR_OUTLIERS and calibration.method != "max":
        words += f"; {outliers:.0f}x outliers are clipped"
    return words


def _by_block(rows: Sequence[LayerRow]) -> tuple[LayerRow, ...]:
    """Sums over the layers of each block and format."""
    groups: dict[tuple[str, str], list[LayerRow]] = {}
    for row in rows:
        groups.setdefault((row.block, row.format), []).append(row)
    found = []
    for (block, option), members in groups.items():
        floats = sum(row.action.startswith("keep") for row in members)
        timed = members[0].time_percent is not None
        found.append(
            LayerRow(
                name=block,
                block="",
                format=option,
                score=sum(row.score for row in members),
                score_percent=sum(row.score_percent for row in members),
                parameters_percent=sum(row.parameters_percent for row in members),
                macs_percent=sum(row.macs_percent for row in members),
                time_percent=sum(row.time_percent or 0.0 for row in members) if timed else None,
                gain_percent=sum(row.gain_percent or 0.0 for row in members) if timed else None,
                range=0.0,
                outliers=max(row.outliers for row in members),
                drop=None,
                action=f"{floats} of {len(members)} layers in float",
            )
        )
    return tuple(sorted(found, key=lambda row: -row.score))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _csv(rows: Sequence[LayerRow]) -> str:
    return csv_text([field.name for field in fields(LayerRow)], (asdict(row).values() for row in rows))
