# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fastest plan within a loss: build those that could still win, learn from each, stop when none is left.

Predictions tell a few per cent, and plans that matter differ by less. So a plan is not measured because it is predicted
to be the fastest, but because it may be, given how sure its prediction is (optimism in the face of uncertainty: Auer et
al., "Finite-time Analysis of the Multiarmed Bandit Problem", 2002). Candidates are the solver's plans and those with
structure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ultra_mq.core import FLOAT
from ultra_mq.plan import deviations_ms, solve_choice, structural_choices
from ultra_mq.prepare import uniform_formats
from ultra_mq.search.verify import FLOAT_STEP, Step, Verifier

SCORE_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Limits of the summed scores, as shares of everything quantized, for which the solver gives its fastest plan."""

OPTIMISM = 1.0
"""Standard deviations by which a candidate may be better than predicted, in latency and in loss."""

LEAST_DEVIATION = 0.15
"""How far a loss is from what the scores say at least, as a share of it."""

HOPELESS = 0.1
"""Probability to keep to the loss, by the graph on ONNX Runtime, below which no engine is built."""

LOOK_SECONDS = 60.0
"""What a look at a graph on ONNX Runtime takes, about; where engines build faster, they are built without one."""


@dataclass(frozen=True)
class Candidate:
    """A plan that could be measured.

    Attributes:
        step: The plan.
        optimistic_ms: Latency that it may well have.
        drop: Points that it is expected to lose.
        optimistic_drop: Points that it may well lose.
    """

    step: Step
    optimistic_ms: float
    drop: float
    optimistic_drop: float


def race(verifier: Verifier, max_drop: float) -> list[str]:
    """Measure plans until none that is left could be faster than the fastest that holds.

    Args:
        verifier: With latencies learnt; its steps are what was measured afterwards.
        max_drop: Points that may be lost.

    Returns:
        What the user should know.
    """
    best = verifier.evaluate(verifier.step(FLOAT_STEP, {}))
    assert best.drop is not None
    if best.drop > max_drop:
        return [f"Even the float model loses {best.drop:.2f} points on {verifier.target.title}."]
    uniform = list(verifier.uniform())
    verifier.time(uniform)
    for step in uniform[1:]:
        verifier.evaluate(step)
    hopeless: set[frozenset[tuple[str, str]]] = set()
    allowed, builds = verifier.session.recipe.latency.builds, 0
    while builds < allowed:
        holding = [step for step in verifier.steps.values() if verifier.holds(step)]
        bound = min(map(verifier.comparable_ms, holding), default=math.inf)
        left = [
            one
            for one in sorted(_candidates(verifier), key=lambda one: one.optimistic_ms)
            if one.optimistic_ms < bound
            and one.optimistic_drop <= max_drop
            and _key(one.step.plan.quantized) not in hopeless
        ]
        chosen: list[Step] = []
        for candidate in left:
            step = candidate.step
            if _is_built(verifier, step):
                chosen = [step]
                break
            # Where the scores are confident enough, a look at the graph costs more than it saves.
            if candidate.drop > max_drop and _is_hopeless(verifier, step, max_drop):
                hopeless.add(_key(step.plan.quantized))
                continue
            chosen.append(step)
            if len(chosen) == min(_side_by_side(verifier), allowed - builds):
                break
        if not chosen:
            break
        builds += sum(not _is_built(verifier, step) for step in chosen)
        verifier.time([uniform[0], *chosen])
        for step in chosen:
            if step.name in verifier.steps:
                verifier.evaluate(step)
            else:
                hopeless.add(_key(step.plan.quantized))
    return []


def _candidates(verifier: Verifier) -> list[Candidate]:
    """Plans that were not measured yet, each different from the others."""
    measured = {_key(step.plan.quantized) for step in verifier.steps.values()}
    choices: dict[frozenset[tuple[str, str]], tuple[str, Mapping[str, str]]] = {}
    for name, choice in _choices(verifier):
        if choice and _key(choice) not in measured:
            choices.setdefault(_key(choice), (name, choice))
    latency = verifier.choices.learnt_latency()
    spreads = deviations_ms(latency, [choice for _, choice in choices.values()])
    expect = _expected_drop(verifier)
    found = []
    for (name, choice), spread in zip(choices.values(), spreads, strict=True):
        # The solver's plans change as the latencies are learnt.
        again = sum(known == name or known.startswith(f"{name} (") for known in verifier.steps)
        step = verifier.step(f"{name} ({again + 1})" if again else name, choice)
        drop, doubt = expect(step.score)
        predicted = step.predicted_ms or 0.0
        found.append(Candidate(step, predicted - OPTIMISM * spread, drop, drop - OPTIMISM * doubt))
    return found


def _choices(verifier: Verifier) -> Iterator[tuple[str, Mapping[str, str]]]:
    choices, limits = verifier.choices, verifier.limits()
    total = 0.0
    for option in verifier.session.recipe.formats:
        uniform = uniform_formats(verifier.session.model, option)
        total = max(total, choices.measure("score", uniform))
        for name, choice in structural_choices(uniform).items():
            if all(choices.measure(measure, choice) <= limit for measure, limit in limits.items()):
                yield name if option == "int8" else f"{name}, {option}", choice
    for share in SCORE_SHARES:
        solved = solve_choice(choices, "latency", {**limits, "score": share * total})
        if solved:
            quantized = {layer: option for layer, option in solved.items() if option != FLOAT}
            yield f"solver {100 * share:.0f}", quantized


def _expected_drop(verifier: Verifier) -> Callable[[float], tuple[float, float]]:
    """Loss that a sum of scores stands for, with its standard deviation, from what was measured: a power law."""
    known = [(step.score, step.drop) for step in verifier.steps.values() if step.score and step.drop is not None]
    score, drop = np.array(known).T if known else (np.ones(1), np.ones(1))
    power = 1.0
    positive = drop > 0
    if len(np.unique(score[positive])) > 1:
        power = float(np.clip(np.polyfit(np.log(score[positive]), np.log(drop[positive]), 1)[0], 0.25, 2.0))
    factor = float(np.median(drop / score**power))
    off = drop - factor * score**power

    def expect(of: float) -> tuple[float, float]:
        expected = factor * of**power
        return expected, max(float(np.sqrt(np.mean(off**2))), LEAST_DEVIATION * abs(expected))

    return expect


def _side_by_side(verifier: Verifier) -> int:
    """How many engines are built at once."""
    devices = verifier.session.recipe.engine.build_on
    return len(devices) if devices and verifier.target.engine else 1


def _is_built(verifier: Verifier, step: Step) -> bool:
    latency = verifier.choices.learnt_latency()
    return any(_key(timed.choice) == _key(step.plan.quantized) for timed in latency.timed)


def _is_hopeless(verifier: Verifier, step: Step, max_drop: float) -> bool:
    """Whether the graph loses so much on ONNX Runtime that building its engine is a waste of minutes."""
    if verifier.last_build_seconds() < LOOK_SECONDS:
        return False
    loss = verifier.loss_of_graph(step)
    return loss.sure_within(max_drop) < HOPELESS


def _key(choice: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(choice.items())
