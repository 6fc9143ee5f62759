# SPDX-License-Identifier: AGPL-3.0-or-later
"""Charts of report.html, as Vega-Lite specifications: the page draws them, and a reader can point and choose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ultra_mq.core import FLOAT
from ultra_mq.plan import KEPT, stage_of
from ultra_mq.report.plots import COLOURS, OTHER
from ultra_mq.report.recommendation import Recommendation
from ultra_mq.report.results import VariantResult
from ultra_mq.runtimes import layer_times
from ultra_mq.search import Search

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
"""Only names the language; nothing is fetched from there."""

KEPT_COLOUR, MISMATCH_COLOUR = "#8b949e", "#c0392b"

SLOWEST = 40
"""Layers of an engine that are shown."""


def chart_front(choice: Recommendation) -> Spec | None:
    """Models by cost and loss with their intervals; None for fewer than two."""
    unit = {"ms": "p50 ms", "bits": "effective bits"}[choice.unit]
    rows = []
    for one in choice.candidates:
        low, high = (one.loss.low, one.loss.high) if one.loss else (one.drop, one.drop)
        kind = "recommended" if one.name == choice.pick else "on the front" if one.on_front else "beaten by another"
        rows.append({"model": one.name, "cost": one.cost, "lost": one.drop, "low": low, "high": high, "kind": kind})
    if len(rows) < 2:
        return None
    return _scatter(rows, "cost", unit, f"points of {choice.metric} lost", name="model")


def chart_search(search: Search) -> Spec | None:
    """Plans that a search measured, by speed-up and loss; None for fewer than two."""
    rows = [
        {
            "plan": step.name,
            "speedup": step.speedup,
            "lost": step.loss.points,
            "low": step.loss.low,
            "high": step.loss.high,
            "layers": len(step.plan.quantized),
            "kind": "taken" if step.name == search.chosen.name else "measured",
        }
        for step in search.steps
        if step.speedup and step.loss
    ]
    if len(rows) < 2:
        return None
    return _scatter(rows, "speedup", "speed-up over float", f"points of {search.metric} lost", name="plan")


def chart_blocks(variant: VariantResult, scores: Mapping[str, float]) -> Spec | None:
    """Sensitivity summed over the blocks of the network; choosing one shows its layers alone in ``chart_layers``."""
    sums: dict[str, float] = defaultdict(float)
    total = sum(scores.values())
    for row in _layer_rows(variant, scores):
        sums[row["block"]] += row["score"]
    if len(sums) < 2 or not total:
        return None
    values = [{"block": block, "share": 100 * score / total} for block, score in sums.items()]
    return {
        **_base(values),
        "height": 160,
        "params": [{"name": "pick", "select": {"type": "point", "fields": ["block"]}}],
        "mark": {"type": "bar", "cursor": "pointer", "color": COLOURS["int8"]},
        "encoding": {
            "x": {"field": "block", "type": "nominal", "sort": None, "title": None},
            "y": {"field": "share", "type": "quantitative", "title": "% of all scores", "scale": {"type": "sqrt"}},
            "opacity": {"condition": {"param": "pick", "value": 1}, "value": 0.35},
            "tooltip": [{"field": "block"}, {"field": "share", "format": ".2f", "title": "% of all scores"}],
        },
    }


def chart_layers(variants: Sequence[VariantResult], scores: Mapping[str, float]) -> Spec | None:
    """Sensitivity of every layer, coloured by what a plan makes of it and what its engine ran.

    The reader chooses the plan; the first to be shown is one that mixes, which says more in colours.
    """
    planned = [variant for variant in variants if variant.plan]
    rows = [{"model": variant.name, **row} for variant in planned for row in _layer_rows(variant, scores)]
    if len(rows) < 2:
        return None
    names = list(dict.fromkeys(row["as"] for row in rows))
    options = [variant.name for variant in planned]
    mixed = [v.name for v in planned if v.plan and 0 < len(v.plan.quantized) < len(scores)]
    plan: Spec = {"name": "model", "value": (mixed or options)[-1]}
    if len(options) > 1:
        plan["bind"] = {"input": "select", "options": options, "name": "Plan of "}
    return {
        **_base(rows),
        "height": 220,
        "params": [{"name": "block", "value": None}, plan],
        "transform": [{"filter": "datum.model == model && (block == null || datum.block == block)"}],
        "mark": {"type": "bar"},
        "encoding": {
            "x": {"field": "layer", "type": "nominal", "sort": None, "title": None, "axis": {"labelOverlap": True}},
            "y": {"field": "score", "type": "quantitative", "title": "score", "scale": {"type": "sqrt"}},
            "color": _coloured("as", names, [_colour(name) for name in names], columns=2),
            "tooltip": [{"field": name} for name in ("layer", "as", "why", "score")]
            + ([{"field": "us", "title": "µs", "format": ".1f"}] if any("us" in row for row in rows) else []),
        },
    }


def chart_kernels(variant: VariantResult) -> Spec | None:
    """The slowest layers of an engine with their types; None where it was not profiled."""
    engine = variant.engine
    timed = sorted((layer for layer in engine.layers if layer.ms), key=lambda layer: -(layer.ms or 0)) if engine else []
    if len(timed) < 2:
        return None
    total = sum(layer.ms or 0.0 for layer in timed)
    rows = [
        {
            "layer": f"{number}. {layer.name[:80]}",
            "us": 1e3 * (layer.ms or 0.0),
            "share": 100 * (layer.ms or 0.0) / total,
            "type": "reformat" if layer.reformat else layer.precision or "not said",
            "kind": layer.kind,
        }
        for number, layer in enumerate(timed[:SLOWEST], start=1)
    ]
    domain = ["Int8", "FP8", "Half", "Float", "reformat", "not said"]
    colours = [COLOURS["int8"], COLOURS["fp8"], COLOURS[FLOAT], "#b5651d", MISMATCH_COLOUR, KEPT_COLOUR]
    return {
        **_base(rows),
        "height": 14 * len(rows),
        "mark": "bar",
        "encoding": {
            "y": {"field": "layer", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 180}},
            "x": {"field": "us", "type": "quantitative", "title": "µs a pass"},
            "color": _coloured("type", domain, colours),
            "tooltip": [
                {"field": "layer"},
                {"field": "kind"},
                {"field": "type"},
                {"field": "us", "format": ".2f", "title": "µs"},
                {"field": "share", "format": ".1f", "title": "% of all"},
            ],
        },
    }


def _scatter(rows: list[dict[str, Any]], x: str, x_title: str, y_title: str, *, name: str) -> Spec:
    """Points with intervals of the loss, which is better the less there is of it."""
    across = {"field": x, "type": "quantitative", "title": x_title, "scale": {"zero": False, "padding": 24}}
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    palette = {"recommended": COLOURS["fp8"], "taken": COLOURS["fp8"], "on the front": COLOURS["int8"]}
    return {
        **_base(rows),
        "height": 300,
        "encoding": {"x": across, "opacity": {"condition": {"param": "pick", "value": 1}, "value": 0.25}},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "y": {
                        "field": "low",
                        "type": "quantitative",
                        "title": y_title,
                        "scale": {"reverse": True, "zero": False},
                    },
                    "y2": {"field": "high"},
                    "color": {"value": KEPT_COLOUR},
                },
            },
            {
                "params": [{"name": "pick", "select": {"type": "point", "fields": [name]}}],
                "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1, "cursor": "pointer"},
                "encoding": {
                    "y": {"field": "lost", "type": "quantitative"},
                    "color": _coloured("kind", kinds, [palette.get(kind, COLOURS[FLOAT]) for kind in kinds]),
                    "tooltip": [
                        {"field": name},
                        {"field": x, "format": ".4~g", "title": x_title},
                        {"field": "lost", "format": ".2f", "title": y_title},
                        {"field": "low", "format": ".2f", "title": "from, 95 %"},
                        {"field": "high", "format": ".2f", "title": "to"},
                    ],
                },
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 9, "dy": -9},
                "encoding": {"y": {"field": "lost", "type": "quantitative"}, "text": {"field": name}},
            },
        ],
    }


def _base(values: list[dict[str, Any]]) -> Spec:
    return {"$schema": SCHEMA, "width": "container", "data": {"values": values}}


def _coloured(field: str, domain: Sequence[str], colours: Sequence[str], **legend: Any) -> Spec:
    """Marks coloured by a field, with the legend above them."""
    scale = {"domain": domain, "range": colours}
    return {"field": field, "type": "nominal", "title": None, "scale": scale, "legend": {"orient": "top", **legend}}


def _layer_rows(variant: VariantResult, scores: Mapping[str, float]) -> list[dict[str, Any]]:
    """Layers of the plan that were scored, in the order of the forward pass."""
    executed = variant.engine.layer_types if variant.engine else {}
    times = layer_times(variant.engine.layers) if variant.engine else {}
    mismatched = {name for name, _, _ in variant.engine_mismatches}
    rows = []
    for layer in variant.plan.layers if variant.plan else ():
        if layer.name not in scores or layer.why in KEPT:
            continue
        row: dict[str, Any] = {
            "layer": layer.name.removesuffix(".conv"),
            "block": stage_of(layer.name),
            "score": scores[layer.name],
            "why": layer.why,
            "as": layer.format + (f", runs {executed[layer.name]}" if layer.name in executed else ""),
        }
        if layer.name in mismatched:
            row["as"] += " (not as planned)"
        if layer.name in times:
            row["us"] = 1e3 * times[layer.name]
        rows.append(row)
    return rows


def _colour(planned_and_executed: str) -> str:
    if planned_and_executed.endswith("(not as planned)"):
        return MISMATCH_COLOUR
    return COLOURS.get(planned_and_executed.partition(",")[0], OTHER)
