# SPDX-License-Identifier: AGPL-3.0-or-later
"""Writing a report: report.md and .html, results.json and .csv, classes.csv, sensitivity.csv, plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ultra_mq.core import atomic_path, csv_text, write_text
from ultra_mq.plan import KEPT, PrecisionPlan
from ultra_mq.report import charts, plots
from ultra_mq.report.gallery import picture_legend
from ultra_mq.report.page import ChartSection, ClassTable, Page, templates, write_page
from ultra_mq.report.recommendation import Recommendation, recommend, variant_of_interest
from ultra_mq.report.results import Report, VariantResult
from ultra_mq.report.tables import (
    advice,
    cuda_graph_note,
    engine_columns,
    engine_row,
    headline,
    loss_rows,
    result_columns,
    result_row,
    search_rows,
    verdict,
)
from ultra_mq.runtimes import layer_times
from ultra_mq.session import Metric

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
    tables = [table for variant in report.variants for table in _class_tables(report, variant)]
    write_classes(folder / "classes.csv", tables)
    values = dict(
        **engines,
        columns=result_columns(report),
        rows=rows,
        verdicts=[verdict(report, variant) for variant in report.variants[1:]],
        advice=advice(report),
        layer_columns=layer_columns,
        images=drawn,
        layers=layers,
        choice=choice,
        classes=tables,
        searches=[(variant, search_rows(variant.search)) for variant in report.variants if variant.search],
    )
    markdown = templates().get_template("report.md.j2")
    write_text(folder / "report.md", markdown.render(**values, pictures=report.pictures))
    if any(variant.engine_accuracy for variant in report.variants):
        template = templates().get_template("results.md.j2")
        name = f"results-{Path(report.recipe.model).stem}-trt-{Path(report.recipe.data).stem}.md"
        shown = [image for image in drawn if image == PARETO]
        write_text(folder / name, template.render(**engines, losses=loss_rows(report), images=shown))
    # The page has pictures, plots and classes of its own, which can be pointed at.
    plain = markdown.render(**{**values, "images": (), "classes": ()}, pictures=())
    details = MarkdownIt("commonmark", {"html": False}).enable("table").render(plain)
    write_page(_page(report, choice, tables, details), folder, "report.html")


def write_classes(path: Path, tables: Sequence[ClassTable]) -> None:
    """Write the losses of every class as CSV, atomically."""
    columns = ("model", "metric", "class", "objects", "images", "float", "quantized", "lost", "low", "high", "resolved")
    rows = [
        (table.variant, table.metric, one.name, one.labels, one.loss.images, f"{one.reference:.4f}", f"{one.model:.4f}",
         f"{one.loss.points:.2f}", f"{one.loss.low:.2f}", f"{one.loss.high:.2f}", one.resolved)
        for table in tables for one in table.classes
    ]  # fmt: skip
    write_text(path, csv_text(columns, [tuple(map(str, row)) for row in rows]))


def _class_tables(report: Report, variant: VariantResult) -> list[ClassTable]:
    words: dict[Metric, str] = {"map": report.metrics.title, "agreement": "agreement with the float model"}
    return [
        ClassTable(variant.name, words[metric], classes) for metric, classes in variant.class_losses.items() if classes
    ]


def _page(report: Report, choice: Recommendation | None, tables: Sequence[ClassTable], details: str) -> Page:
    shown = variant_of_interest(report, choice)
    images = report.reference.accuracy.images
    verdicts = [headline(report, shown)] if shown else []
    if choice:
        verdicts.append(f"Recommended: {choice.pick}. {choice.why}" if choice.pick else choice.why)
    verdicts += advice(report)
    return Page(
        title=report.title,
        subtitle=f"{images} images at {report.recipe.size_text} px; float is the model as it was trained.",
        verdicts=verdicts,
        warnings=report.warnings,
        columns=result_columns(report),
        rows=[result_row(report, variant) for variant in report.variants],
        marked=shown.name if shown else None,
        charts=list(_charts(report, choice, shown)),
        classes=[table for table in tables if shown and table.variant == shown.name],
        pictures=report.pictures,
        legend=picture_legend("float", report.pictured or ""),
        commands=(*(choice.commands if choice else ()), "ultra-mq run recipe.yaml  # everything above"),
        details=details,
        versions=report.versions,
    )


def _charts(report: Report, choice: Recommendation | None, shown: VariantResult | None) -> Iterator[ChartSection]:
    """The charts that have something to show."""
    if choice and (spec := charts.chart_front(choice)):
        text = "Up and to the left is better. Lines are 95 % intervals; point for figures, click to mark the row above."
        yield ChartSection("front", "Accuracy against cost", text, spec, "rows")
    for variant in report.variants:
        if variant.search and (spec := charts.chart_search(variant.search)):
            text = (
                "Plans that were measured, against the float model of their own rounds. Up and to the right is better."
            )
            yield ChartSection(f"search-{variant.name}", f"Search of {variant.name}", text, spec)
    if shown and report.sensitivity:
        scores = report.sensitivity.worst
        if spec := charts.chart_blocks(shown, scores):
            text = "Share of all that the network is sensitive to. Click a block to see its layers alone."
            yield ChartSection("blocks", "Sensitivity by block", text, spec, "layers")
        if spec := charts.chart_layers(report.variants, scores):
            ran = ", and as what its engine runs it" if shown.engine else ""
            text = (
                f"Coloured by what a plan makes of each layer{ran}. The scale is of roots, so that small ones are seen."
            )
            yield ChartSection("layers", "Sensitivity by layer", text, spec)
    if shown and (spec := charts.chart_kernels(shown)):
        text = f"The {charts.SLOWEST} slowest layers of the engine of {shown.name}, profiled one by one."
        yield ChartSection("kernels", "Where the time goes", text, spec)


def _draw(report: Report, planned: dict[str, PrecisionPlan], choice: Recommendation | None) -> list[str]:
    images = []
    if report.sensitivity:
        # A plan that mixes says more in colours than one that quantizes all or nothing.
        searched = [name for name, plan in planned.items() if any(layer.why == "searched" for layer in plan.layers)]
        mixed = [name for name in searched if 0 < len(planned[name].quantized) < len(report.sensitivity.scores)]
        name = next(iter((*mixed, *searched, *planned)))
        scores = report.sensitivity.worst
        with atomic_path(report.folder / "sensitivity.png") as temporary:
            plots.plot_sensitivity(scores, planned[name].quantized, name, temporary)
        images.append("sensitivity.png")
    variants = [variant for variant in report.variants[1:] if variant.plan]
    panels = {"agreement with FP32": ([v.accuracy.agreement or 0.0 for v in variants], 1.0)}
    if report.reference.accuracy.main is not None:
        values = [100 * (v.accuracy.main or 0.0) for v in variants]
        panels[f"{report.metrics.title}, points"] = (values, 100 * report.reference.accuracy.main)
    if len(planned) > 1:
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
    worst = report.sensitivity.worst if report.sensitivity else {}
    order = sorted(rows, key=lambda name: (name in kept, -worst.get(name, 0.0)))
    return [(name, f"{worst[name]:.4g}" if name in worst else "", *rows[name]) for name in order]
