# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a search found, as values and in words."""

from __future__ import annotations

from dataclasses import dataclass

from ultra_mq.measure import USUAL_CONFIDENCE, Drop, Verdict
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
    def largest_error(self) -> float:
        """Largest error of a predicted latency, as a share of the measured one."""
        return max((abs(predicted / measured - 1) for predicted, measured in self.predictions.values()), default=0.0)


def judge(verifier: Verifier, step: Step) -> Verdict | None:
    """Whether the loss of a step keeps to the limit, as surely as asked for; None where nothing is limited."""
    limit = verifier.variant.max_drop
    if limit is None or step.loss is None:
        return None
    return step.loss.judge(limit, verifier.variant.confidence or USUAL_CONFIDENCE)


def describe_loss(loss: Drop, limit: float, confidence: float | None = None) -> str:
    """A loss against its limit in words: its interval, how sure the verdict is, and how many images would tell.

    Args:
        loss: Points lost.
        limit: Points that may be lost.
        confidence: How sure a verdict has to be; 95 % where nobody says.
    """
    confidence = confidence or USUAL_CONFIDENCE
    text = f"loses {loss.points:.2f} points ({loss.low:.2f} to {loss.high:.2f}) on {loss.images} images"
    sure = loss.sure_within(limit)
    if loss.judge(limit, confidence) != "open":
        word, sure = ("holds", sure) if sure > 0.5 else ("fails", 1 - sure)
        return f"{text}: it {word} {limit:g} points, {100 * sure:.0f} % sure."
    needed = loss.images_needed(limit, confidence)
    more = f"; about {needed} images would be needed to be {100 * confidence:.0f} % sure" if needed else ""
    return f"{text}: whether it holds {limit:g} points cannot be told, {100 * sure:.0f} % sure that it does{more}."


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
    if met and not chosen.plan.quantized:
        lines.append("The best model within the budgets is the float model; there is nothing to gain from quantizing.")
    if met and chosen.loss and (limit := verifier.variant.max_drop) is not None and chosen.plan.quantized:
        lines.append(f"It {describe_loss(chosen.loss, limit, verifier.variant.confidence)}")
    if not met:
        asked = ", ".join(f"{name}={value:g}" for name, value in verifier.variant.budgets.items())
        reached = [f"loses {chosen.drop:.2f} points"] if chosen.drop is not None else []
        reached += [f"takes {chosen.latency_ms:.4g} ms"] if chosen.latency_ms is not None else []
        lines.append(f"No plan that was tried meets {asked}. The nearest {' and '.join(reached)}.")
    return lines
