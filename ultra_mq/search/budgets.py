# SPDX-License-Identifier: AGPL-3.0-or-later
"""Budgets of accuracy and latency: plans predicted from scores and costs, verified on the data, few of them.

What a person can afford is a loss of accuracy or a time, and no score knows either. The sum of the scores orders the
plans, so that the loss grows, as good as monotonically, along the front of least scores and can be bracketed: each
evaluation moves one end, until the ends lie close together in cost or the evaluations are used up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from ultra_mq.plan import BUILD_DEVIATION, Measure, PrecisionPlan, solve_choice
from ultra_mq.search.outcome import Search, explain, judge
from ultra_mq.search.race import race
from ultra_mq.search.verify import FLOAT_STEP, Step, Verifier, open_verifier
from ultra_mq.session import Session, Variant, plan_variant

MAX_EVALUATIONS = 6

TIGHT = 1 / 64
"""Share of the distance in cost from float to the cheapest plan (of eight bits, say) at which the search stops."""

AIM = 0.9
"""Share of the allowed loss that a prediction aims at, since half of the predictions would miss it otherwise."""

GUESSED_POWER = 1.0
"""The loss grows like this power of the summed scores, which are changes; replaced once two plans are known."""

CORRECTIONS = 4
"""How often a plan for a latency is corrected after it was measured."""

FINALISTS = 2
"""Plans beside the uniform ones that are timed side by side at the end."""


def find_plan(session: Session, variant: Variant) -> PrecisionPlan:
    """The plan of a variant, searched where its budgets have to be measured."""
    return search(session, variant).chosen.plan if variant.budgets else plan_variant(session, variant)


def search(session: Session, variant: Variant) -> Search:
    """Find the plan that meets a variant's budgets: least cost for a loss, or least loss for a latency.

    Args:
        session: The run.
        variant: Budgets: ``max_drop``, ``max_latency_ms``, ``min_speedup``, ``bits``, alone or together.

    Returns:
        The search; where no plan meets the budgets, ``chosen`` is the nearest.

    Raises:
        BudgetError: A loss of mAP is limited, and the data has no labels.
        BackendError: The recipe's runtime cannot be used here.
    """
    verifier = open_verifier(session, variant)
    findings: list[str] = []
    if variant.max_drop is not None:
        spend = race if verifier.cost_model == "latency" else _spend_accuracy
        findings += spend(verifier, variant.max_drop)
        if verifier.choices.latency:
            verifier.time(_finalists(verifier))
            _evaluate_fast_uniform(verifier)
    else:
        _fit_into_latency(verifier)
    chosen, met = _choose(verifier)
    steps = tuple(verifier.steps.values())
    return Search(
        budgets=variant.budgets,
        metric=verifier.metric,
        cost_model=verifier.cost_model,
        runtime=verifier.target.name,
        target=verifier.target.title,
        steps=steps,
        chosen=chosen,
        met=met,
        findings=(*findings, *explain(verifier, chosen, met)),
        evaluations=sum(step.drop is not None and step.name != FLOAT_STEP for step in steps),
        predictions={**_probe_predictions(verifier), **verifier.predictions},
        verdict=judge(verifier, chosen),
    )


def _spend_accuracy(verifier: Verifier, max_drop: float) -> list[str]:
    """Bracket the allowed loss between float and the cheapest plan; returns what the user should know."""
    cost: Measure = verifier.cost_model
    limits = verifier.limits()
    findings = []
    cheapest = solve_choice(verifier.choices, cost, limits)
    if cheapest is None:
        findings.append("No plan is predicted to meet the budget of latency; the fastest ones were tried.")
        limits.pop("latency", None)
        cheapest = solve_choice(verifier.choices, cost, limits) or {}
    # The float model on ONNX Runtime is the reference itself; elsewhere it has a loss of its own.
    best = verifier.evaluate(verifier.step(FLOAT_STEP, {}))
    assert best.drop is not None
    if best.drop > max_drop:
        return [*findings, f"Even the float model loses {best.drop:.2f} points on {verifier.target.title}."]
    worst = step = verifier.step("step 1", cheapest)
    reach = best.cost - worst.cost
    # One is left for a uniform plan that turns out to be faster.
    allowed = MAX_EVALUATIONS - (len(verifier.session.recipe.formats) if verifier.choices.latency else 0)
    for number in range(2, allowed + 2):
        if any(step.plan.quantized == known.plan.quantized for known in verifier.steps.values()):
            break
        step = verifier.evaluate(step)
        if step.keeps(max_drop):
            best = step
        else:
            worst = step
        if best.cost <= worst.cost or best.cost - worst.cost <= TIGHT * reach:
            break
        step = _between(verifier, f"step {number}", best, worst, max_drop, limits)
    return findings


def _between(
    verifier: Verifier, name: str, best: Step, worst: Step, max_drop: float, limits: Mapping[Measure, float]
) -> Step:
    """The plan to verify next, between the best one that holds and the cheapest one that does not."""
    cost: Measure = verifier.cost_model
    margin = TIGHT / 2 * (best.cost - worst.cost)
    aim = _expect_score(verifier, worst, AIM * max_drop)
    if best.score < aim < worst.score:
        choice = solve_choice(verifier.choices, cost, {**limits, "score": aim})
        if choice is not None:
            step = verifier.step(name, choice)
            if worst.cost + margin < step.cost < best.cost - margin:
                return step
    middle = (best.cost + worst.cost) / 2
    choice = solve_choice(verifier.choices, "score", {**limits, cost: min(middle, limits.get(cost, middle))})
    return verifier.step(name, choice or {})


def _expect_score(verifier: Verifier, worst: Step, drop: float) -> float:
    """Sum of scores at which a loss is expected, by a power law through the plans that are known."""
    assert worst.drop is not None
    known = sorted((step.score, step.drop) for step in verifier.steps.values() if step.score and step.drop is not None)
    known = [(score, lost) for score, lost in known if lost > 0]
    pairs = [(a, b) for a, b in itertools.pairwise(known) if b[0] <= worst.score and b[1] > a[1] and b[0] > a[0]]
    power = GUESSED_POWER
    if pairs:
        (low, small), (high, large) = pairs[-1]
        # Noise of few images can make the curve look flat or like a wall.
        power = min(max(math.log(large / small) / math.log(high / low), 0.25), 2.0)
    return float(worst.score * (drop / worst.drop) ** (1 / power)) if drop > 0 else 0.0


def _finalists(verifier: Verifier) -> list[Step]:
    """Float, every uniform plan, and the cheapest plans that hold: what is worth timing side by side."""
    uniform = list(verifier.uniform())
    limit = verifier.variant.max_drop or 0.0
    holding = [
        step
        for step in verifier.steps.values()
        if step.keeps(limit) and step.name not in {known.name for known in uniform}
    ]
    fastest = sorted(holding, key=lambda step: (verifier.comparable_ms(step), step.cost))
    return [*uniform, *fastest[:FINALISTS]]


def _evaluate_fast_uniform(verifier: Verifier) -> None:
    """A uniform plan that beats everything that holds deserves its own evaluation."""
    fastest = min((_slowness(step) for step in verifier.steps.values() if verifier.holds(step)), default=math.inf)
    for step in list(verifier.steps.values()):
        if step.drop is None and _slowness(step) < fastest:
            verifier.evaluate(step)


def _fit_into_latency(verifier: Verifier) -> None:
    """Least loss within a latency: predicted, measured, and corrected by what the prediction was off."""
    limits = verifier.limits()
    correction = 1.0
    for number in range(1, CORRECTIONS + 1):
        wanted: dict[Measure, float] = {**limits, "latency": correction * limits["latency"]}
        choice = solve_choice(verifier.choices, "score", wanted)
        reachable = choice is not None
        if choice is None:
            wanted.pop("latency")
            choice = solve_choice(verifier.choices, "latency", wanted) or {}
        step = verifier.step(f"step {number}", choice)
        measured = verifier.time([*verifier.uniform(), step]).latencies
        reference = measured.get(FLOAT_STEP)
        budget = verifier.latency_budget_ms(reference.p50_ms if reference else None)
        timed = measured.get(step.name)
        if timed is None or budget is None or not reachable or timed.p50_ms <= budget:
            return
        correction *= 0.99 * budget / timed.p50_ms


def _probe_predictions(verifier: Verifier) -> dict[str, tuple[float, float]]:
    timed = verifier.choices.latency.timed if verifier.choices.latency else ()
    return {one.name: (one.predicted_ms, one.latency_ms) for one in timed if one.predicted_ms is not None}


def _choose(verifier: Verifier) -> tuple[Step, bool]:
    """The best plan that meets every budget, or the nearest, and whether it does."""
    steps = list(verifier.steps.values())
    max_drop = verifier.variant.max_drop

    def loss(step: Step) -> float:
        return step.score

    def cost(step: Step) -> float:
        if verifier.cost_model != "latency":
            return step.cost
        return _slowness(step)

    if holding := [step for step in steps if verifier.holds(step)]:
        if max_drop is None or verifier.cost_model != "latency":
            return min(holding, key=loss if max_drop is None else cost), True
        # What is not surely faster than float is no reason to quantize, and what differs by less than builds of one
        # graph do is no faster; agreement tells such plans apart.
        sure = [step for step in holding if (step.speedup_interval or (1.0,))[0] >= 1] or holding
        fastest = min(map(cost, sure))
        equal = [step for step in sure if cost(step) <= fastest * (1 + BUILD_DEVIATION)]
        return max(equal, key=lambda step: (step.agreement or 0.0, -cost(step))), True
    if accurate := [step for step in steps if max_drop is not None and step.drop is not None and step.drop <= max_drop]:
        return min(accurate, key=_slowness), False
    if max_drop is None:
        return min(steps, key=_slowness), False
    return min(steps, key=lambda step: math.inf if step.drop is None else step.drop), False


def _slowness(step: Step) -> float:
    """Latency in units of float's in the same rounds."""
    return 1 / step.speedup if step.speedup else math.inf
