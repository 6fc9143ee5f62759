# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a search found, as values and in words."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from ultra_mq.measure import USUAL_CONFIDENCE, Verdict, describe_loss
from ultra_mq.plan import CostModel
from ultra_mq.search.verify import Step, Verifier
from ultra_mq.session import Metric


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        budgets: Name of each budget to its limit.
        metric: What the ``drop`` of a step counts.
        cost_model: What was kept low.
        runtime: Runtime that plans were proven and timed on, by its name in a recipe.
        target: The same for the reader, with version and device.
        steps: Every plan that was measured, in the order of measurement.
        chosen: The plan that was taken.
        met: Whether it meets every budget; where none does it is the nearest.
        findings: What the user should know, in sentences.
        evaluations: Plans whose accuracy was measured, without the float model.
        predictions: Name of a plan to predicted and measured milliseconds, probes among them; none was predicted from
            its own measurement.
        verdict: Whether the loss of the chosen plan keeps to the limit: ``holds`` or ``fails`` at the confidence asked
            for (95 % by default), or ``open`` where these images cannot tell; None without a limit.
    """

    budgets: dict[str, float]
    metric: Metric
    cost_model: CostModel
    runtime: str
    target: str
    steps: tuple[Step, ...]
    chosen: Step
    met: bool
    findings: tuple[str, ...]
    evaluations: int
    predictions: dict[str, tuple[float, float]]
    verdict: Verdict | None = None

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, of predicted and measured latencies; None below three plans."""
        from scipy.stats import spearmanr

        pairs = list(self.predictions.values())
        return float(spearmanr(*zip(*pairs, strict=True))[0]) if len(pairs) > 2 else None

    @property
    def median_error(self) -> float:
        """Median error of a predicted latency, as a share of the measured one."""
        errors = [abs(predicted / measured - 1) for predicted, measured in self.predictions.values()]
        return statistics.median(errors) if errors else 0.0

    @property
    def largest_error(self) -> float:
        """Largest error of a predicted latency, as a share of the measured one."""
        return max((abs(predicted / measured - 1) for predicted, measured in self.predictions.values()), default=0.0)


def judge(verifier: Verifier, step: Step) -> Verdict | None:
    """Whether the loss of a step keeps to the limit, as surely as asked for; None where nothing is limited."""
    limit = verifier.variant.max_drop
    if limit is None or step.loss is None:
        return None
    return step.loss.judge(limit, verifier.variant.confidence or USUAL_CONFIDENCE)


def _why_float(verifier: Verifier, limit: float | None) -> str:
    faster = [
        step
        for step in verifier.steps.values()
        if step.plan.quantized and step.loss and step.speedup_interval and step.speedup_interval[0] > 1
    ]
    if not faster or limit is None:
        return "there is nothing to gain from quantizing."
    nearest = min(faster, key=lambda step: step.drop or 0.0)
    assert nearest.loss is not None
    said = describe_loss(nearest.loss, limit, verifier.variant.confidence)
    return f"of those that are faster, '{nearest.name}' ({nearest.speedup:.3f}x) comes nearest: it {said}"


def explain(verifier: Verifier, chosen: Step, met: bool) -> list[str]:
    """What was found, in sentences."""
    lines = []
    for option in verifier.session.recipe.formats:
        uniform = verifier.steps.get(option)
        if uniform and uniform.speedup_interval and uniform.speedup_interval[1] < 1:
            low, high = uniform.speedup_interval
            lines.append(
                f"{option.upper()} throughout does not pay on {verifier.target.title}: it runs at {low:.2f} to "
                f"{high:.2f} times the speed of float."
            )
    limit = verifier.variant.max_drop
    if met and not chosen.plan.quantized:
        lines.append(f"The best model within the budgets is the float model; {_why_float(verifier, limit)}")
    if met and chosen.loss and limit is not None and chosen.plan.quantized:
        lines.append(f"It {describe_loss(chosen.loss, limit, verifier.variant.confidence)}")
    if chosen.broken_classes:
        worst = ", ".join(
            f"{one.name} ({one.loss.points:.1f}, {one.loss.low:.1f} to {one.loss.high:.1f})"
            for one in chosen.broken_classes
        )
        lines.append(f"Classes that lose more than a class may: {worst}.")
    if not met:
        asked = ", ".join(f"{name}={value:g}" for name, value in verifier.variant.budgets.items())
        reached = [f"loses {chosen.drop:.2f} points"] if chosen.drop is not None else []
        reached += [f"takes {chosen.latency_ms:.4g} ms"] if chosen.latency_ms is not None else []
        lines.append(f"No plan that was tried meets {asked}. The nearest {' and '.join(reached)}.")
    return lines
