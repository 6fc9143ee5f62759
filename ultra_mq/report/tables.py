# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tables and sentences of a report, from its values."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from ultra_mq.measure import Drop, Latency
from ultra_mq.plan import KEPT, PrecisionPlan
from ultra_mq.report.results import Report, VariantResult
from ultra_mq.search import Search

FEW_IMAGES = 1000
"""Below this many images a point of mAP is noise."""

GOOD_AGREEMENT = 0.98
"""Agreement at which a user hardly sees a difference; below it the report says what more bits would do."""

CONSOLE_COLUMNS = {"model": "model", "bits": "bits", "quantized layers": "INT8", "change": "change",
                   "agreement": "agree", "CPU p50 ms": "CPU ms", "speed-up": "ratio"}  # fmt: skip
"""Columns that fit a terminal of 80 characters beside the main metric, with their short titles."""


def result_columns(report: Report) -> tuple[str, ...]:
    """Headings of the result table."""
    return (
        "model", "bits", "quantized layers", report.metrics.title, "change", report.metrics.second_title, "agreement",
        "ONNX MB", "CPU p50 ms", "speed-up",
    )  # fmt: skip


def result_row(report: Report, variant: VariantResult) -> tuple[str, ...]:
    """One row of the result table, formatted: metrics in points (0 to 100), agreement in [0, 1]."""
    accuracy, reference = variant.accuracy, report.reference.accuracy
    change = None
    if variant is not report.reference and accuracy.main is not None and reference.main is not None:
        change = f"{100 * (accuracy.main - reference.main):+.2f}"
    plan = variant.plan
    return (
        variant.name,
        f"{plan.bits:.2f}" if plan else "32" if variant is report.reference else "-",
        _quantized_text(plan) if plan else "-",
        points(accuracy.main),
        change or "-",
        points(accuracy.second),
        share(accuracy.agreement),
        f"{variant.size_bytes / 1e6:.1f}",
        milliseconds(variant.latency.p50_ms) if variant.latency else "-",
        speedup(variant.latency),
    )


def headline(report: Report, variant: VariantResult) -> str:
    """The one sentence about a variant: points lost and speed gained, each with its interval."""
    metric = next(iter(variant.losses), None)
    parts = []
    if metric:
        loss = variant.losses[metric]
        name = report.metrics.title if metric == "map" else "agreement with the float model"
        verb, low, high = ("loses", loss.low, loss.high) if loss.points >= 0 else ("gains", -loss.high, -loss.low)
        parts.append(f"{verb} {abs(loss.points):.2f} points of {name} (95 %: {low:.2f} to {high:.2f})")
    latency = variant.engine_latency or variant.latency
    if latency and latency.speedup:
        interval = latency.speedup_interval
        words = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        against = (report.engine_bench.reference if report.engine_bench else None) if variant.engine_latency else "FP32"
        where = "on the GPU" if variant.engine_latency else "on this CPU"
        parts.append(f"runs at {latency.speedup:.2f} times{words} the speed of {against} {where}")
    if variant.plan:
        parts.append(f"has {_quantized_text(variant.plan)} layers quantized")
    *first, last = parts or ["was made"]
    return f"{variant.name} {', '.join(first)}{' and ' if first else ''}{last}."


def _quantized_text(plan: PrecisionPlan) -> str:
    """Quantized layers, of those that a plan may quantize."""
    return f"{len(plan.quantized)} of {sum(layer.why not in KEPT for layer in plan.layers)}"


def verdict(report: Report, variant: VariantResult) -> str:
    """One sentence that says what a variant costs and whether that can be seen."""
    accuracy, reference = variant.accuracy, report.reference.accuracy
    agreement = f"agreement with FP32 {accuracy.agreement:.3f}" if accuracy.agreement is not None else ""
    if accuracy.shift is not None:
        agreement += f", log-probabilities move by {accuracy.shift:.3g} on average"
    if accuracy.main is None or reference.main is None:
        return f"**{variant.name}**: {agreement} (the data has no labels, so there is no {report.metrics.title})."
    lost = 100 * (reference.main - accuracy.main)
    direction = f"loses {lost:.2f}" if lost >= 0 else f"gains {-lost:.2f}"
    figures = f"{points(accuracy.main)} of {points(reference.main)}"
    noise = "."
    loss = variant.losses.get("map") if not variant.engine_accuracy else None
    if loss and loss.deviation:
        agreement = f"95 % interval of the loss {loss.low:.2f} to {loss.high:.2f}, {agreement}"
        if loss.low < 0 < loss.high:
            noise = f". {accuracy.images} images cannot tell that from no loss; trust the agreement."
    elif accuracy.images < FEW_IMAGES and abs(lost) < 1:
        noise = ". That is within what so few images resolve; trust the agreement."
    return f"**{variant.name}** {direction} points of {report.metrics.title} ({figures}), {agreement}{noise}"


def advice(report: Report) -> list[str]:
    """What to do next, from what was measured."""
    mixed = [variant for variant in report.variants[1:] if variant.plan and variant.plan.quantized]
    lines = [
        f"{variant.name} is slower than FP32 on this CPU with {variant.latency.runtime['runtime']} "
        f"({speedup(variant.latency)}): INT8 pays where the runtime fuses Q/DQ. Do not deploy it here."
        for variant in mixed
        if variant.latency and variant.latency.speedup and variant.latency.speedup < 1
    ]
    lines += [_slow_engine(report, variant) for variant in report.variants if _is_slow(variant)]
    if mixed and report.outlook and (best := max(mixed, key=lambda v: v.accuracy.agreement or 0.0)).plan:
        reached = best.plan.bits
        higher = next((row for row in report.outlook if row[0] > reached + 0.25), None)
        if higher and (best.accuracy.agreement or 0.0) < GOOD_AGREEMENT:
            now = min(report.outlook, key=lambda row: abs(row[0] - reached))
            if now[1] == higher[1]:
                return lines
            lines.append(
                f"To come closer to the float model: --bits {higher[0]:g} keeps {now[1] - higher[1]} more layers in "
                f"float and takes the predicted loss from {now[2]:.0f} to {higher[2]:.0f} % of quantizing everything."
            )
    return lines


def search_rows(search: Search) -> list[tuple[str, ...]]:
    """The plans that a search measured: what was predicted, what came out."""
    rows: list[tuple[str, ...]] = []
    for step in search.steps:
        predicted = search.predictions.get(step.name)
        low, high = step.speedup_interval or (0.0, 0.0)
        rows.append(
            (
                f"**{step.name}**" if step.name == search.chosen.name else step.name,
                f"{step.plan.bits:.2f}",
                str(len(step.plan.quantized)),
                "-" if step.drop is None else points_text(step.loss) if step.loss else f"{step.drop:.2f}",
                milliseconds(predicted[0]) if predicted else "-",
                milliseconds(step.latency_ms) if step.latency_ms is not None else "-",
                f"{100 * (predicted[0] / predicted[1] - 1):+.1f} %" if predicted else "-",
                f"{low:.3f} to {high:.3f}" if step.speedup_interval else "-",
            )
        )
    return rows


def points_text(loss: Drop) -> str:
    """Points lost with their interval, for a cell of a table."""
    return f"{loss.points:.2f} ({loss.low:.2f} to {loss.high:.2f})"


def console_table(report: Report) -> Table:
    """The result table for the console."""
    table = Table(title=escape(report.title), title_justify="left")
    titles = list(CONSOLE_COLUMNS.items())
    titles.insert(3, (report.metrics.title, report.metrics.title.removesuffix("50-95")))
    for column, title in titles:
        table.add_column(title, justify="left" if column == "model" else "right", no_wrap=True)
    for variant in report.variants:
        row = dict(zip(result_columns(report), result_row(report, variant), strict=True))
        table.add_row(*(row[column].replace(" of ", "/") for column, _ in titles))
    return table


def speedup(latency: Latency | None) -> str:
    """A ratio to the reference; a dash for the reference itself, and where there is none."""
    return f"{latency.speedup:.2f}x" if latency and latency.speedup else "-"


def points(value: float | None) -> str:
    """An AP in [0, 1] as points, two decimals; a dash where it was not measured."""
    return "-" if value is None or value < 0 else f"{100 * value:.2f}"


def milliseconds(value: float) -> str:
    """A time in milliseconds with three significant digits, four below one: engines differ there."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def engine_columns(report: Report) -> tuple[str, ...]:
    """Headings of the table of engines."""
    return (
        "model", "engine", report.metrics.title, "to its ONNX", "agreement with ONNX", "agreement with FP32", "p50 ms",
        "p99 ms", "speed-up", "95 % interval", "wall p50 ms", "MB", "GPU MB", "INT8 layers", "reformats",
    )  # fmt: skip


def engine_row(variant: VariantResult) -> tuple[str, ...]:
    """One row of the table of engines."""
    engine, accuracy, latency = variant.engine, variant.engine_accuracy, variant.engine_latency
    assert engine is not None
    change = None
    if accuracy and accuracy.main is not None and variant.accuracy.main is not None:
        change = f"{100 * (accuracy.main - variant.accuracy.main):+.2f}"
    interval = latency.speedup_interval if latency else None
    return (
        variant.name,
        f"{engine.runtime_name}, {engine.device}",
        points(accuracy.main if accuracy else None),
        change or "-",
        share(variant.engine_agreement),
        share(accuracy.agreement if accuracy else None),
        f"{latency.p50_ms:.4f}" if latency else "-",
        f"{latency.p99_ms:.4f}" if latency else "-",
        speedup(latency),
        f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-",
        milliseconds(latency.wall_p50_ms) if latency and latency.wall_p50_ms else "-",
        f"{engine.size_bytes / 1e6:.1f}",
        f"{latency.device_memory_bytes / 1e6:.0f}" if latency and latency.device_memory_bytes else "-",
        str(sum(kind == "Int8" for kind in engine.layer_types.values())),
        str(sum(layer.reformat for layer in engine.layers)),
    )


def _is_slow(variant: VariantResult) -> bool:
    """Whether the engine is slower than the reference beyond the noise."""
    interval = variant.engine_latency.speedup_interval if variant.engine_latency else None
    return interval is not None and interval[1] < 1


def _slow_engine(report: Report, variant: VariantResult) -> str:
    assert variant.engine is not None
    assert variant.engine_latency is not None
    reference = report.engine_bench.reference if report.engine_bench else None
    layers = variant.engine.layers
    total = sum(layer.ms or 0.0 for layer in layers)
    reformats = [layer for layer in layers if layer.reformat]
    share = 100 * sum(layer.ms or 0.0 for layer in reformats) / total if total else 0.0
    return (
        f"The engine of {variant.name} is slower than {reference} ({speedup(variant.engine_latency)}): "
        f"{len(reformats)} reformats between INT8 and float take {share:.0f} % of its layers' time. Deploy FP16 here, "
        f"or quantize what lies between the convolutions too, as ultra-mq ptq does."
    )


def share(value: float | None) -> str:
    """A figure in [0, 1], three decimals; a dash where it was not measured."""
    return "-" if value is None else f"{value:.3f}"


def cuda_graph_note(report: Report) -> str:
    """Whether the passes were replays of a CUDA graph, for the sentence about latency."""
    states = {v.engine_latency.runtime.get("cuda_graph", "") for v in report.variants if v.engine_latency}
    return f" (CUDA graph {', '.join(sorted(states))})" if states else ""


def loss_rows(report: Report) -> list[tuple[str, ...]]:
    """Engines against the FP16 engine: what INT8 costs and what it gives."""
    fp16 = next((v for v in report.variants if v.plan and not v.plan.quantized and v.engine_accuracy), None)
    against = fp16.engine_accuracy.main if fp16 and fp16.engine_accuracy else None
    rows: list[tuple[str, ...]] = []
    for v in report.variants:
        if v.engine is None or v.engine_accuracy is None:
            continue
        found = v.engine_accuracy.main
        lost = "-" if found is None or against is None else f"{100 * (against - found):.2f}"
        rows.append(
            (
                v.name,
                f"{v.plan.bits:.2f}" if v.plan else "-",
                str(len(v.plan.quantized)) if v.plan else "-",
                points(found),
                points(v.engine_accuracy.second),
                lost,
                speedup(v.engine_latency),
            )
        )
    return rows
