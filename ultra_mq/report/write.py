# SPDX-License-Identifier: AGPL-3.0-or-later
"""Writing a report: report.md and .html, results.json and .csv, sensitivity.csv, plots."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2

from ultra_mq.core import atomic_path, csv_text, write_text
from ultra_mq.plan import KEPT, PrecisionPlan
from ultra_mq.report import plots
from ultra_mq.report.recommendation import Recommendation, recommend
from ultra_mq.report.results import Report
from ultra_mq.report.tables import (
    advice,
    cuda_graph_note,
    engine_columns,
    engine_row,
    loss_rows,
    points,
    result_columns,
    result_row,
    search_rows,
    verdict,
)
from ultra_mq.runtimes import layer_times

PARETO = "pareto.png"


def write_report(report: Report) -> None:
    """Write every file of the report into its run folder, each atomically."""
    from markdown_it import MarkdownIt

    folder = report.folder
    planned = {variant.name: variant.plan for variant in report.variants if variant.plan is not None}
    rows = [result_row(report, variant) for variant in report.variants]
    layers = _layer_rows(report)
    write_text(folder / "results.json", json.dumps(report.to_dict(), indent=2))
    write_text(folder / "results.csv", csv_text(result_columns(report), rows))
    layer_columns = ("layer", "INT8 score", *_layer_headings(report))
    write_text(folder / "sensitivity.csv", csv_text(("layer", "score", *layer_columns[2:]), layers))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ultra_mq.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(points=points)
    choice = recommend(report)
    if choice:
        columns = ("name", "cost", "drop", "images_per_second", "device", "on_front")
        front = [tuple(str(getattr(candidate, name)) for name in columns) for candidate in choice.candidates]
        write_text(folder / "pareto.csv", csv_text(("model", choice.unit, *columns[2:]), front))
    drawn = _draw(report, planned, choice)
    engines = {
        "report": report,
        "engine_columns": engine_columns(report),
        "engine_rows": [engine_row(variant) for variant in report.variants if variant.engine],
        "cuda_graph": cuda_graph_note(report),
    }
    text = environment.get_template("report.md.j2").render(
        **engines,
        columns=result_columns(report),
        rows=rows,
        verdicts=[verdict(report, variant) for variant in report.variants[1:]],
        advice=advice(report),
        layer_columns=layer_columns,
        images=drawn,
        layers=layers,
        choice=choice,
        searches=[(variant, search_rows(variant.search)) for variant in report.variants if variant.search],
    )
    write_text(folder / "report.md", text)
    if any(variant.engine_accuracy for variant in report.variants):
        template = environment.get_template("results.md.j2")
        name = f"results-{Path(report.recipe.model).stem}-trt-{Path(report.recipe.data).stem}.md"
        shown = [image for image in drawn if image == PARETO]
        write_text(folder / name, template.render(**engines, losses=loss_rows(report), images=shown))
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    page = environment.get_template("report.html.j2").render(
        title=f"ultra-mq: {Path(report.recipe.model).name}", body=body
    )
    write_text(folder / "report.html", page)


def _draw(report: Report, planned: dict[str, PrecisionPlan], choice: Recommendation | None) -> list[str]:
    images = []
    if report.sensitivity:
        # A plan that mixes says more in colours than one that quantizes all or nothing.
        searched = [name for name, plan in planned.items() if any(layer.why == "searched" for layer in plan.layers)]
        mixed = [name for name in searched if 0 < len(planned[name].quantized) < len(report.sensitivity.scores)]
        name = next(iter((*mixed, *searched, *planned)))
        scores = {layer: max(by_format.values(), default=0.0) for layer, by_format in report.sensitivity.scores.items()}
        with atomic_path(report.folder / "sensitivity.png") as temporary:
            plots.plot_sensitivity(scores, planned[name].quantized, name, temporary)
        images.append("sensitivity.png")
    variants = [variant for variant in report.variants[1:] if variant.plan]
    panels = {"agreement with FP32": ([v.accuracy.agreement or 0.0 for v in variants], 1.0)}
    if report.reference.accuracy.main is not None:
        values = [100 * (v.accuracy.main or 0.0) for v in variants]
        panels[f"{report.metrics.title}, points"] = (values, 100 * report.reference.accuracy.main)
    with atomic_path(report.folder / "accuracy.png") as temporary:
        plots.plot_against_bits({name: plan.bits for name, plan in planned.items()}, panels, temporary)
    images.append("accuracy.png")
    if choice:
        with atomic_path(report.folder / PARETO) as temporary:
            plots.plot_pareto(
                {candidate.name: (candidate.cost, candidate.drop) for candidate in choice.candidates},
                [candidate.name for candidate in choice.candidates if candidate.on_front],
                ({"ms": "p50, ms", "bits": "effective bits"}[choice.unit], f"points of {choice.metric} lost"),
                temporary,
            )
        images.append(PARETO)
    return images


def _layer_headings(report: Report) -> list[str]:
    headings = []
    for variant in report.variants:
        if variant.plan:
            headings += [variant.name, *(["executed", "us"] if variant.engine else [])]
    return headings


def _layer_rows(report: Report) -> list[tuple[str, ...]]:
    """Layer, INT8 score, and for each plan its format and what the engine made of it; the most sensitive first."""
    rows: dict[str, list[str]] = {}
    kept = set()
    for variant in report.variants:
        executed = variant.engine.layer_types if variant.engine else {}
        times = layer_times(variant.engine.layers) if variant.engine else {}
        for layer in variant.plan.layers if variant.plan else ():
            row = rows.setdefault(layer.name, [])
            row.append(layer.format if layer.why in ("searched", "user") else f"{layer.format} ({layer.why})")
            if layer.why in KEPT:
                kept.add(layer.name)
            if variant.engine:
                row += [executed.get(layer.name, "-"), f"{1e3 * times[layer.name]:.1f}" if layer.name in times else "-"]
    scores = report.sensitivity.scores if report.sensitivity else {}
    worst = {name: max(by_format.values(), default=0.0) for name, by_format in scores.items()}
    order = sorted(rows, key=lambda name: (name in kept, -worst.get(name, 0.0)))
    return [(name, f"{worst[name]:.4g}" if name in worst else "", *rows[name]) for name in order]
