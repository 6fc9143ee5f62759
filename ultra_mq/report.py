# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a run found: report.md and .html, results.json and .csv, sensitivity.csv, plots."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table

from ultra_mq import plots
from ultra_mq.backends.tensorrt_rtx import RtxEngine
from ultra_mq.bench import Latency
from ultra_mq.evaluate import Accuracy, Parity
from ultra_mq.files import atomic_path, write_text
from ultra_mq.formats import FLOAT
from ultra_mq.plan import PrecisionPlan
from ultra_mq.recipe import Recipe
from ultra_mq.sensitivity import Sensitivity

FEW_IMAGES = 1000
"""Below this many images a point of mAP is noise."""

GOOD_AGREEMENT = 0.98
"""Agreement at which a user hardly sees a difference; below it the report says what more bits would do."""

RTX_TYPES = {"int8": "Int8", FLOAT: "Half"}


@dataclass(frozen=True)
class VariantResult:
    """One model that was made, and what was measured on it.

    Attributes:
        name: Name of the variant, ``fp32`` for the reference.
        onnx: ONNX file that was evaluated, relative to the run folder.
        onnx_fp16: Strongly typed graph for TensorRT, relative to the run folder; None for the reference.
        size_bytes: Size of ``onnx``.
        accuracy: What the validator measured.
        plan: Precision of every layer; None for the reference.
        parity: Fake-quantized torch against ONNX, where it was measured.
        latency: Latency on the CPU, where it was measured.
        engine: TensorRT-RTX engine, where it was built.
    """

    name: str
    onnx: str
    onnx_fp16: str | None
    size_bytes: int
    accuracy: Accuracy
    plan: PrecisionPlan | None = None
    parity: Parity | None = None
    latency: Latency | None = None
    engine: RtxEngine | None = None

    @property
    def engine_mismatches(self) -> list[tuple[str, str, str]]:
        """Layers that the engine runs in another type than planned: name, planned, executed.

        DFL is part of box decode, which is kept in FP32 on purpose.
        """
        if self.engine is None or self.plan is None:
            return []
        found = []
        for layer in self.plan.layers:
            executed = self.engine.layer_types.get(layer.name, "missing")
            if executed != RTX_TYPES[layer.format] and ".dfl." not in layer.name:
                found.append((layer.name, layer.format, executed))
        return found


@dataclass(frozen=True)
class Report:
    """Everything a run found.

    Attributes:
        folder: Run folder.
        recipe: Resolved recipe.
        variants: The float reference first, then the variants of the recipe.
        sensitivity: Scores of the layers, where a variant needed them.
        outlook: What other budgets would do, from the same scores: bits, quantized layers, predicted loss of the
            plan in percent of the loss of quantizing everything.
        warnings: What the user should know.
        not_built: One line for each artefact that was not built, and how to get it.
        versions: Versions of the packages involved.
        seconds: Stage to wall time.
    """

    folder: Path
    recipe: Recipe
    variants: tuple[VariantResult, ...]
    sensitivity: Sensitivity | None = None
    outlook: tuple[tuple[float, int, float], ...] = ()
    warnings: tuple[str, ...] = ()
    not_built: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def reference(self) -> VariantResult:
        """The float model."""
        return self.variants[0]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, detections left out."""
        variants = []
        for variant in self.variants:
            entry = asdict(variant)
            entry["accuracy"].pop("detections")
            entry["engine_mismatches"] = variant.engine_mismatches
            if variant.engine:
                entry["engine"]["path"] = variant.engine.path.name
            if variant.parity:
                entry["parity"]["holds"] = variant.parity.holds
            variants.append(entry)
        return {
            "schema": "ultra-mq/results/1",
            "recipe": self.recipe.model_dump(mode="json"),
            "variants": variants,
            "sensitivity": asdict(self.sensitivity) if self.sensitivity else None,
            "outlook": [
                dict(zip(("bits", "quantized_layers", "predicted_loss_percent"), row, strict=True))
                for row in self.outlook
            ],
            "warnings": list(self.warnings),
            "not_built": list(self.not_built),
            "versions": self.versions,
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
        }


def write_report(report: Report) -> None:
    """Write every file of the report into its run folder, each atomically."""
    from markdown_it import MarkdownIt

    folder = report.folder
    planned = {variant.name: variant.plan for variant in report.variants if variant.plan is not None}
    rows = [result_row(report, variant) for variant in report.variants]
    layers = _layer_rows(report, list(planned.values()))
    write_text(folder / "results.json", json.dumps(report.to_dict(), indent=2))
    write_text(folder / "results.csv", _csv(RESULT_COLUMNS, rows))
    write_text(folder / "sensitivity.csv", _csv(("layer", "score", *planned), layers))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ultra_mq"), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(points=points)
    text = environment.get_template("report.md.j2").render(
        report=report,
        columns=RESULT_COLUMNS,
        rows=rows,
        verdicts=[verdict(report, variant) for variant in report.variants[1:]],
        advice=advice(report),
        images=_draw(report, planned),
        layers=layers,
        planned=planned,
    )
    write_text(folder / "report.md", text)
    body = MarkdownIt("commonmark").enable("table").render(text)
    page = environment.get_template("report.html.j2").render(title=f"ultra-mq: {report.recipe.model}", body=body)
    write_text(folder / "report.html", page)


def _draw(report: Report, planned: dict[str, PrecisionPlan]) -> list[str]:
    images = []
    if report.sensitivity:
        # A plan that mixes says more in colours than one that quantizes all or nothing.
        searched = [name for name in planned if planned[name].layers[0].why == "searched"]
        mixed = [name for name in searched if 0 < len(planned[name].quantized) < len(report.sensitivity.scores)]
        name = (mixed or searched)[0]
        scores = {layer: max(by_format.values()) for layer, by_format in report.sensitivity.scores.items()}
        with atomic_path(report.folder / "sensitivity.png") as temporary:
            plots.plot_sensitivity(scores, planned[name].quantized, name, temporary)
        images.append("sensitivity.png")
    variants = report.variants[1:]
    panels = {"agreement with FP32": ([v.accuracy.agreement or 0.0 for v in variants], 1.0)}
    if report.reference.accuracy.map50_95 is not None:
        values = [100 * (v.accuracy.map50_95 or 0.0) for v in variants]
        panels["mAP50-95, points"] = (values, 100 * report.reference.accuracy.map50_95)
    with atomic_path(report.folder / "accuracy.png") as temporary:
        plots.plot_against_bits({name: plan.bits for name, plan in planned.items()}, panels, temporary)
    return [*images, "accuracy.png"]


RESULT_COLUMNS = (
    "model", "bits", "quantized layers", "mAP50-95", "change", "mAP50", "agreement", "ONNX MB", "CPU p50 ms",
    "speed-up",
)  # fmt: skip


def result_row(report: Report, variant: VariantResult) -> tuple[str, ...]:
    """One row of the result table, formatted: mAP in points (0 to 100), agreement in [0, 1]."""
    accuracy, reference = variant.accuracy, report.reference.accuracy
    change = None
    if variant is not report.reference and accuracy.map50_95 is not None and reference.map50_95 is not None:
        change = f"{100 * (accuracy.map50_95 - reference.map50_95):+.2f}"
    plan = variant.plan
    return (
        variant.name,
        f"{plan.bits:.2f}" if plan else "32",
        f"{len(plan.quantized)} of {sum(layer.why != 'kept' for layer in plan.layers)}" if plan else "-",
        points(accuracy.map50_95),
        change or "-",
        points(accuracy.map50),
        f"{accuracy.agreement:.3f}" if accuracy.agreement is not None else "-",
        f"{variant.size_bytes / 1e6:.1f}",
        milliseconds(variant.latency.p50_ms) if variant.latency else "-",
        f"{variant.latency.speedup:.2f}x" if variant.latency else "-",
    )


def verdict(report: Report, variant: VariantResult) -> str:
    """One sentence that says what a variant costs and whether that can be seen."""
    accuracy, reference = variant.accuracy, report.reference.accuracy
    agreement = f"agreement with FP32 {accuracy.agreement:.3f}" if accuracy.agreement is not None else ""
    if accuracy.map50_95 is None or reference.map50_95 is None:
        return f"**{variant.name}**: {agreement} (the data has no labels, so there is no mAP)."
    lost = 100 * (reference.map50_95 - accuracy.map50_95)
    direction = f"loses {lost:.2f}" if lost >= 0 else f"gains {-lost:.2f}"
    figures = f"{points(accuracy.map50_95)} of {points(reference.map50_95)}"
    noise = "."
    if accuracy.images < FEW_IMAGES and abs(lost) < 1:
        noise = ". That is within what so few images resolve; trust the agreement."
    return f"**{variant.name}** {direction} points of mAP50-95 ({figures}), {agreement}{noise}"


def advice(report: Report) -> list[str]:
    """What to do next, from what was measured."""
    mixed = [variant for variant in report.variants[1:] if variant.plan and variant.plan.quantized]
    lines = [
        f"{variant.name} is slower than FP32 on this CPU with ONNX Runtime ({variant.latency.speedup:.2f}x): "
        f"INT8 pays where the runtime fuses Q/DQ, as TensorRT does. Do not deploy it here."
        for variant in mixed
        if variant.latency and variant.latency.speedup < 1
    ]
    if mixed and report.outlook and (best := max(mixed, key=lambda v: v.accuracy.agreement or 0.0)).plan:
        reached = best.plan.bits
        higher = next((row for row in report.outlook if row[0] > reached + 0.25), None)
        if higher and (best.accuracy.agreement or 0.0) < GOOD_AGREEMENT:
            now = min(report.outlook, key=lambda row: abs(row[0] - reached))
            lines.append(
                f"For boxes closer to the float model: --bits {higher[0]:g} keeps {now[1] - higher[1]} more layers in "
                f"float and takes the predicted loss from {now[2]:.0f} to {higher[2]:.0f} % of quantizing everything."
            )
    return lines


CONSOLE_COLUMNS = {"model": "model", "bits": "bits", "quantized layers": "INT8", "mAP50-95": "mAP50-95",
                   "change": "change", "agreement": "agree", "CPU p50 ms": "CPU ms", "speed-up": "ratio"}  # fmt: skip
"""Columns that fit a terminal of 80 characters, with their short titles."""


def console_table(report: Report) -> Table:
    """The result table for the console."""
    table = Table(title=f"{Path(report.recipe.model).name} on {Path(report.recipe.data).name}", title_justify="left")
    for column, title in CONSOLE_COLUMNS.items():
        table.add_column(title, justify="left" if column == "model" else "right", no_wrap=True)
    for variant in report.variants:
        row = dict(zip(RESULT_COLUMNS, result_row(report, variant), strict=True))
        table.add_row(*(row[column].replace(" of ", "/") for column in CONSOLE_COLUMNS))
    return table


def points(value: float | None) -> str:
    """An AP in [0, 1] as points, two decimals; a dash where it was not measured."""
    return "-" if value is None or value < 0 else f"{100 * value:.2f}"


def milliseconds(value: float) -> str:
    """A time in milliseconds with three significant digits."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _layer_rows(report: Report, plans: list[PrecisionPlan]) -> list[tuple[str, ...]]:
    """Layer, INT8 score, format in each plan; the most sensitive first, kept layers last."""
    formats: dict[str, list[str]] = {}
    for plan in plans:
        for layer in plan.layers:
            formats.setdefault(layer.name, []).append(layer.format if layer.why != "kept" else f"{layer.format} (kept)")
    scores = report.sensitivity.scores if report.sensitivity else {}
    worst = {name: max(by_format.values()) for name, by_format in scores.items()}
    order = sorted(formats, key=lambda name: (formats[name][0].endswith("(kept)"), -worst.get(name, 0.0)))
    return [(name, f"{worst[name]:.4g}" if name in worst else "", *formats[name]) for name in order]


def _csv(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
