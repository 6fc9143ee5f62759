# SPDX-License-Identifier: AGPL-3.0-or-later
"""A report held against limits, for CI: a difference inside the noise is not a failure, and is called by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from ultra_mq.core import ReportError
from ultra_mq.measure import DRAWS, TASK_METRICS, Accuracy, ClassLoss, bootstrap_loss, compare, load_accuracy
from ultra_mq.report.results import ACCURACY, ENGINE_FOLDER, load_variants
from ultra_mq.session import Metric, choose_metric

Verdict = Literal["pass", "noise", "fail"]


@dataclass(frozen=True)
class LimitCheck:
    """One limit.

    Attributes:
        what: What is limited.
        value: What was measured.
        low: Lower end of the 95 % interval of the value.
        high: Upper end.
        limit: What is allowed.
        verdict: ``pass``; ``noise`` where the value misses the limit and the interval does not; ``fail``.
    """

    what: str
    value: float
    low: float
    high: float
    limit: float
    verdict: Verdict

    def __str__(self) -> str:
        words = {
            "pass": "passes",
            "noise": "passes: the difference is inside the noise",
            "fail": "FAILS",
        }
        return (
            f"{self.what} {self.value:.2f} (95 % interval {self.low:.2f} to {self.high:.2f}), limit {self.limit:g}: "
            f"{words[self.verdict]}."
        )


def check_report(
    results: Path,
    *,
    variant: str | None = None,
    max_drop: float | None = None,
    max_drop_per_class: float | None = None,
    metric: Metric | None = None,
    min_speedup: float | None = None,
    confidence: float | None = None,
) -> tuple[str, tuple[LimitCheck, ...]]:
    """Hold one variant of a run against limits.

    The engine is checked where there is one, and the ONNX file otherwise. Accuracy refers to the float model, speed to
    what the report's ratios refer to: the FP16 engine, or the FP32 file on the CPU.

    Args:
        results: ``results.json`` of a run folder.
        variant: Name of the variant; the last one by default.
        max_drop: Points of ``metric`` that may be lost.
        max_drop_per_class: Points of ``metric`` that a class may lose; the worst is checked, of those that at least 5
            images hold.
        metric: ``map`` or ``agreement``; ``map`` where the data has labels.
        min_speedup: Smallest ratio of latencies.
        confidence: How sure ``max_drop`` must be kept to, 0.95 say; what these images cannot tell fails then. By
            default only a whole interval beyond the limit fails.

    Returns:
        The variant's name, and one check for each limit.

    Raises:
        ReportError: The file is not a report, or does not hold what is to be checked.
    """
    variants = _read(results)
    name = variant or list(variants)[-1]
    if name not in variants:
        raise ReportError(f"'{results}' has no variant '{name}'. It has {', '.join(variants)}.")
    found = variants[name]
    engine = bool(found.get("engine_accuracy"))
    checks = []
    if max_drop is not None:
        folder = results.parent / ACCURACY
        accuracy = load_accuracy(folder / name / ENGINE_FOLDER if engine else folder / name)
        reference = load_accuracy(folder / next(iter(variants)))
        checks.append(_check_drop(accuracy, reference, max_drop, metric, confidence))
    if max_drop_per_class is not None:
        checks.append(_check_classes(found, results, max_drop_per_class, metric))
    if min_speedup is not None:
        latency = found.get("engine_latency") if engine else found.get("latency")
        if not latency:
            raise ReportError(f"'{results}' has no latency of '{name}'. Run the recipe with bench.rounds above 0.")
        if latency["speedup"] is None:
            raise ReportError(
                f"'{results}' has no speed-up of '{name}': it was timed alone, or is the reference itself. "
                f"Run it beside its reference: a variant of precision fp16, or engine.reference=true."
            )
        low, high = latency["speedup_interval"]
        value = latency["speedup"]
        verdict: Verdict = "pass" if value >= min_speedup else "noise" if high >= min_speedup else "fail"
        checks.append(LimitCheck("speed-up", value, low, high, min_speedup, verdict))
    return name, tuple(checks)


def gate_summary(name: str, checks: Sequence[LimitCheck]) -> str:
    """The checks of a variant as a Markdown table, for the page of a CI job."""
    marks = {"pass": "✅ passes", "noise": "✅ inside the noise", "fail": "❌ fails"}
    lines = [f"### ultra-mq: {name}", "", "| what | value | 95 % | limit | |", "|---|---|---|---|---|"]
    lines += [
        f"| {check.what} | {check.value:.2f} | {check.low:.2f} to {check.high:.2f} | {check.limit:g} | "
        f"{marks[check.verdict]} |"
        for check in checks
    ]
    return "\n".join([*lines, "", ""])


def _check_drop(
    accuracy: Accuracy, reference: Accuracy, max_drop: float, metric: Metric | None, confidence: float | None
) -> LimitCheck:
    metric = choose_metric(metric, labelled=reference.main is not None)
    if metric == "map" and reference.main is None:
        raise ReportError("The data of this report has no labels. Use --metric agreement.")
    drop = bootstrap_loss(compare(accuracy, reference.predictions), reference, metric, DRAWS)
    verdict: Verdict = "pass" if drop.points <= max_drop else "noise" if drop.low <= max_drop else "fail"
    if confidence is not None:
        verdict = "pass" if drop.judge(max_drop, confidence) == "holds" else "fail"
    what = f"points of {TASK_METRICS[reference.task].title if metric == 'map' else 'agreement'} lost"
    return LimitCheck(what, drop.points, drop.low, drop.high, max_drop, verdict)


def _check_classes(found: dict[str, Any], results: Path, limit: float, metric: Metric | None) -> LimitCheck:
    by_metric = found.get("class_losses") or {}
    kind = metric or next(iter(by_metric), "map")
    judged = [one for one in TypeAdapter(list[ClassLoss]).validate_python(by_metric.get(kind, ())) if one.resolved]
    if not judged:
        raise ReportError(
            f"'{results}' has no class of '{found['name']}' to judge by {kind}: each is in too few images, or was not "
            f"compared. Evaluate on more images, or leave --max-drop-per-class out."
        )
    worst = max(judged, key=lambda one: one.loss.low)
    if worst.loss.low <= limit:
        worst = max(judged, key=lambda one: one.loss.points)
    loss = worst.loss
    verdict: Verdict = "pass" if loss.points <= limit else "noise" if loss.low <= limit else "fail"
    what = f"points of {kind} lost by '{worst.name}', the worst of {len(judged)} classes,"
    return LimitCheck(what, loss.points, loss.low, loss.high, limit, verdict)


def _read(results: Path) -> dict[str, dict[str, Any]]:
    try:
        return load_variants(results)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"'{results}' cannot be read: {error}. Pass the results.json of a run folder of this version."
        ) from error
