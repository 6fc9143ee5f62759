# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which model of a report to take: the front of accuracy against cost, success criteria, the pick rebuilt."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ultra_mq.measure import Drop, Latency, describe_loss, find_broken_classes, points_lost
from ultra_mq.report.results import Report, VariantResult
from ultra_mq.session import Criteria, Metric, Recipe, choose_metric

Unit = Literal["ms", "bits"]
BATCH_KEYS = ("model", "variants", "project", "name", "exist_ok", "criteria", "pick", "placement", "strict")
"""Keys of a recipe that do not change what ``apply`` makes of a plan, or that stand in the plan."""


@dataclass(frozen=True)
class Candidate:
    """One model of a report.

    Attributes:
        name: Name of the variant.
        drop: Points lost against the float model.
        loss: The same with its interval; None where it was not measured.
        cost: Median milliseconds, or bits.
        images_per_second: Throughput, where it was timed.
        device: Where it was timed.
        on_front: Whether no other model is at least as good in both and better in one.
        misses: What it misses of the criteria, in words.
    """

    name: str
    drop: float
    loss: Drop | None
    cost: float
    images_per_second: float | None
    device: str
    on_front: bool
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Recommendation:
    """What to take.

    Attributes:
        metric: What ``drop`` counts.
        unit: What ``cost`` counts.
        candidates: Every model, the cheapest first.
        pick: Name of the recommended one; None where none meets the criteria.
        why: Reason in one sentence.
        commands: Commands that rebuild it on a fresh machine.
    """

    metric: Metric
    unit: Unit
    candidates: tuple[Candidate, ...]
    pick: str | None
    why: str
    commands: tuple[str, ...]


def recommend(report: Report) -> Recommendation | None:
    """Choose among the variants of a report; None where there is nothing to choose from."""
    recipe = report.recipe
    labelled = report.reference.accuracy.main is not None
    criteria = recipe.criteria
    metric = choose_metric(criteria.metric, labelled=labelled)
    unit, costs = _costs(report)
    results = [result for result in report.variants if result.name in costs]
    if len(results) < 2 or (metric == "map" and not labelled):
        return None
    drops = {result.name: _drop(report, result, metric, unit) for result in results}
    front = find_front({name: (costs[name], drops[name]) for name in costs})
    candidates = []
    for result in sorted(results, key=lambda r: costs[r.name]):
        latency = _latency(result)
        timed = latency if unit == "ms" else None
        candidates.append(
            Candidate(
                result.name,
                drops[result.name],
                result.losses.get(metric),
                costs[result.name],
                timed.images_per_second if timed else None,
                timed.runtime.get("device", "") if timed else "",
                result.name in front,
                _misses(criteria, drops[result.name], metric, result, unit),
            )
        )
    pick, why = _pick(recipe, criteria, candidates, unit)
    why = " ".join([why, *_doubts(criteria, candidates, pick, unit, _build_spread(results))])
    chosen = next((result for result in results if result.name == pick), None)
    return Recommendation(
        metric, unit, tuple(candidates), pick, why, rebuild_commands(report, chosen) if chosen else ()
    )


def variant_of_interest(report: Report, choice: Recommendation | None) -> VariantResult | None:
    """The quantized variant that pictures and plots are of: the recommended one, else the last; None for none."""
    quantized = [result for result in report.variants[1:] if result.plan is None or result.plan.quantized]
    return next((result for result in quantized if choice and result.name == choice.pick), None) or (
        quantized[-1] if quantized else None
    )


def find_front(points: dict[str, tuple[float, float]]) -> tuple[str, ...]:
    """Names of the points that no other beats: both numbers are costs, and less is better."""
    found: list[str] = []
    least = float("inf")
    for name, (_, drop) in sorted(points.items(), key=lambda item: item[1]):
        if drop < least:
            found.append(name)
            least = drop
    return tuple(found)


def find_knee(points: Sequence[tuple[float, float]]) -> int:
    """Index of the knee of a front: the point farthest below the line from its first to its last point.

    Both axes are scaled to the range of the front (Satopaa et al. 2011, "Finding a Kneedle in a Haystack").

    Args:
        points: Costs and losses along the front, the cheapest first.
    """
    (x0, y0), (x1, y1) = points[0], points[-1]
    if x0 == x1 or y0 == y1:
        return 0
    below = [1 - (x - x0) / (x1 - x0) - (y - y1) / (y0 - y1) for x, y in points]
    return max(range(len(points)), key=lambda index: (below[index], -index))


def rebuild_commands(report: Report, result: VariantResult) -> tuple[str, ...]:
    """Commands that rebuild a variant on a fresh machine, with everything that differs from the defaults."""
    recipe = report.recipe
    install = f"pip install 'ultra-mq=={report.versions.get('ultra-mq', '')}'"
    weights = shlex.quote(recipe.model)
    if result.plan is None:
        return (install, f"yolo export model={weights} format=onnx imgsz={shlex.quote(str(recipe.size))}")
    folder = "" if len(recipe.variants) == 1 else f"{result.name}/"
    overrides = shlex.join(f"{key}={value}" for key, value in _changed(recipe))
    onnx = result.build_from or result.onnx
    commands = [install, f"ultra-mq apply {folder}plan.yaml {weights} {overrides}".rstrip()]
    if result.engine and result.engine.target == "tensorrt":
        commands.append(f"ultra-mq build {shlex.quote(onnx)}")
    return tuple(commands)


def _changed(recipe: Recipe) -> list[tuple[str, Any]]:
    """Keys with other values than the default ones, nested keys with dots."""
    found: list[tuple[str, Any]] = [("data", recipe.data)]
    default = Recipe()
    for key, value in recipe:
        before = getattr(default, key)
        if key in (*BATCH_KEYS, "data") or value == before or (key == "single_cls" and not value):
            continue
        if hasattr(value, "model_fields_set") and before is not None:
            found += [(f"{key}.{name}", inner) for name, inner in value if inner != getattr(before, name)]
        else:
            found.append((key, list(value) if isinstance(value, tuple) else value))
    return found


def _costs(report: Report) -> tuple[Unit, dict[str, float]]:
    """Engines' latencies where there are any, the CPU's where that is the runtime that counts, bits otherwise."""
    engines = {r.name: r.engine_latency.p50_ms for r in report.variants if r.engine_latency}
    if len(engines) > 1:
        return "ms", engines
    recipe = report.recipe
    if not engines and (recipe.cost_model == "latency" or recipe.runtime in ("onnxruntime", "openvino")):
        return "ms", {r.name: r.latency.p50_ms for r in report.variants if r.latency}
    return "bits", {r.name: r.plan.bits for r in report.variants if r.plan}


def _latency(result: VariantResult) -> Latency | None:
    return result.engine_latency or result.latency


def _drop(report: Report, result: VariantResult, metric: Metric, unit: Unit) -> float:
    accuracy = result.engine_accuracy if unit == "ms" and result.engine_accuracy else result.accuracy
    return points_lost(accuracy, report.reference.accuracy, metric)


def _misses(criteria: Criteria, drop: float, metric: Metric, result: VariantResult, unit: Unit) -> tuple[str, ...]:
    found = []
    loss = result.losses.get(metric)
    latency = _latency(result) if unit == "ms" else None
    if criteria.max_drop is not None:
        if drop > criteria.max_drop:
            found.append(f"loses {drop:.2f} points")
        elif criteria.confidence and loss and loss.judge(criteria.max_drop, criteria.confidence) != "holds":
            sure = 100 * loss.sure_within(criteria.max_drop)
            found.append(f"loses {drop:.2f} points, {sure:.0f} % sure to keep to the limit")
    broken = find_broken_classes(result.class_losses.get(metric, ()), criteria.max_drop_per_class)
    if broken:
        found.append(f"loses too much of {', '.join(one.name for one in broken)}")
    limits = (criteria.max_latency_ms, criteria.min_images_per_second, criteria.device)
    if latency is None:
        return (*found, "was not timed") if any(limit is not None for limit in limits) else tuple(found)
    if criteria.max_latency_ms is not None and latency.p50_ms > criteria.max_latency_ms:
        found.append(f"takes {latency.p50_ms:.4g} ms")
    if criteria.min_images_per_second is not None and latency.images_per_second < criteria.min_images_per_second:
        found.append(f"does {latency.images_per_second:.4g} images a second")
    if criteria.device is not None and criteria.device.lower() not in latency.runtime.get("device", "").lower():
        found.append(f"was timed on {latency.runtime.get('device', 'another device')}")
    return tuple(found)


def _build_spread(results: Sequence[VariantResult]) -> float | None:
    """How far builds of one graph are apart, as a share of the fastest; None where every engine was built once."""
    tries = [result.engine.tries_ms for result in results if result.engine and len(result.engine.tries_ms) > 1]
    return max((max(times) / min(times) - 1 for times in tries), default=None)


def _doubts(
    criteria: Criteria, candidates: list[Candidate], pick: str | None, unit: Unit, spread: float | None
) -> list[str]:
    """What images and builds leave open of a pick."""
    chosen = next((candidate for candidate in candidates if candidate.name == pick), None)
    if chosen is None:
        return []
    lines = []
    if criteria.max_drop is not None and chosen.loss and chosen.loss.deviation:
        lines.append(f"It {describe_loss(chosen.loss, criteria.max_drop, criteria.confidence)}")
    if unit == "ms" and spread is not None:
        close = [c.name for c in candidates if c is not chosen and abs(c.cost / chosen.cost - 1) <= spread]
        if close:
            lines.append(
                f"Builds of one graph are up to {100 * spread:.1f} % apart here, so that {', '.join(close)} cannot be "
                f"told from it by speed."
            )
    return lines


def _pick(recipe: Recipe, criteria: Criteria, candidates: list[Candidate], unit: Unit) -> tuple[str | None, str]:
    meeting = [candidate for candidate in candidates if not candidate.misses]
    if not meeting:
        nearest = min(candidates, key=lambda c: (len(c.misses), max(c.drop, 0.0), c.cost))
        return (
            None,
            f"No model meets the criteria; the nearest is {nearest.name}, which {' and '.join(nearest.misses)}.",
        )
    if recipe.pick == "knee":
        front = [candidate for candidate in meeting if candidate.on_front] or meeting
        chosen = front[find_knee([(candidate.cost, candidate.drop) for candidate in front])]
        return chosen.name, "It is the knee of the front: beyond it every further gain costs more than it brings."
    chosen = min(meeting, key=lambda candidate: candidate.cost)
    word = "fastest" if unit == "ms" else "smallest"
    limit = f" that loses at most {criteria.max_drop:g} points" if criteria.max_drop is not None else ""
    return chosen.name, f"It is the {word} model{limit}."
