# SPDX-License-Identifier: AGPL-3.0-or-later
"""Scores, costs and limits to the best choice of formats."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ultra_mq.cost import CostModel, average_bits
from ultra_mq.errors import BudgetError
from ultra_mq.formats import FLOAT, FORMATS
from ultra_mq.latency import LatencyModel
from ultra_mq.model import PreparedModel
from ultra_mq.plan import PrecisionPlan, check_bits, make_plan
from ultra_mq.sensitivity import Sensitivity

if TYPE_CHECKING:
    import pulp

Measure = Literal["score", "weights", "macs", "latency"]
"""What a choice is measured in: summed scores, bits averaged over weights or MACs, milliseconds."""

TOLERANCE = 1e-9
"""Share by which rounding may exceed a limit."""

LATENCY_GAP = 1e-4
"""Share of the predicted latency that is not worth the solver's time; the prediction is far less exact."""


@dataclass(frozen=True)
class Choices:
    """What there is to choose, and what each choice costs.

    Attributes:
        scores: Layer to format to score, formats without kernels for the layer left out, float among them with 0.
        sizes: Cost model to layer to size, see ``cost.layer_sizes``.
        groups: Layers that take one decision; a layer that has no kernels for the group's format stays in float.
        latency: Prediction of the latency, where it counts.
    """

    scores: Mapping[str, Mapping[str, float]]
    sizes: Mapping[CostModel, Mapping[str, float]]
    groups: tuple[tuple[str, ...], ...]
    latency: LatencyModel | None = None

    def measure(self, measure: Measure, choice: Mapping[str, str]) -> float:
        """Value of a choice, layers that are missing in it being float."""
        if measure == "score":
            return sum(by_format[choice.get(layer, FLOAT)] for layer, by_format in self.scores.items())
        if measure == "latency":
            return self._latency().predict(choice)
        return average_bits(choice, self.sizes[measure])

    def _latency(self) -> LatencyModel:
        if self.latency is None:
            raise BudgetError("A budget of latency needs measured times. Use --cost latency.")
        return self.latency


def make_choices(
    model: PreparedModel,
    sensitivity: Sensitivity,
    sizes: Mapping[CostModel, Mapping[str, float]],
    groups: tuple[tuple[str, ...], ...] | None = None,
    latency: LatencyModel | None = None,
) -> Choices:
    """The choices of a scored model.

    Args:
        model: Prepared model the scores belong to.
        sensitivity: Scores of every quantizable layer.
        sizes: Cost model to layer sizes.
        groups: From ``groups.find_groups``; every layer decides alone where it is None.
        latency: Prediction of the latency, where it counts.
    """
    channels = {layer.name: layer.channels for layer in model.quantizable}
    scores = {
        name: {FLOAT: 0.0} | {o: score for o, score in by_format.items() if channels[name] >= FORMATS[o].min_channels}
        for name, by_format in sensitivity.scores.items()
    }
    return Choices(scores, sizes, groups or tuple((name,) for name in scores), latency)


def solve_plan(
    model: PreparedModel,
    sensitivity: Sensitivity,
    sizes: Mapping[str, float],
    bits: float,
    *,
    cost_model: CostModel = "weights",
    data_fingerprint: str | None = None,
    groups: tuple[tuple[str, ...], ...] | None = None,
) -> PrecisionPlan:
    """Find the plan with the lowest sum of scores whose bits stay within the budget.

    Args:
        model: Prepared model the scores belong to.
        sensitivity: Scores of every quantizable layer.
        sizes: Layer sizes from ``cost.layer_sizes``.
        bits: Budget in bits averaged over ``sizes``; below the floor every layer takes its cheapest format.
        cost_model: What ``sizes`` count.
        data_fingerprint: SHA-256 of the scored images.
        groups: Layers that take one decision.

    Raises:
        BudgetError: ``bits`` is outside (0, 16].
    """
    check_bits(bits)
    choices = make_choices(model, sensitivity, {cost_model: sizes}, groups)
    cheapest = {name: min(by_format, key=lambda o: FORMATS[o].bits) for name, by_format in choices.scores.items()}
    floor = choices.measure(cost_model, cheapest)
    choice = solve_choice(choices, "score", {cost_model: max(bits, floor)})
    if choice is None:
        raise BudgetError(f"No plan meets {bits:g} bits. Raise --bits.")
    return make_plan(
        model,
        choice,
        sizes,
        budget_bits=bits,
        cost_model=cost_model,
        scores=sensitivity.scores,
        data_fingerprint=data_fingerprint,
    )


def solve_choice(choices: Choices, minimise: Measure, limits: Mapping[Measure, float]) -> dict[str, str] | None:
    """Find the choice with the least of one measure that keeps to limits of others.

    A multiple-choice knapsack, solved to the optimum as an integer program by CBC: the problem that ModelOpt's
    ``auto_quantize`` solves for bits, with the scores scaled so that the solver's tolerance hides none of them, and
    with a cost for each border between precisions where latency counts.

    Args:
        choices: What there is to choose.
        minimise: What shall be least; among equals the lowest score wins.
        limits: Measure to its largest value.

    Returns:
        Layer to format, or None where no choice keeps to the limits.
    """
    with warnings.catch_warnings():
        # pulp announces its version 4 with a warning for every variable; the dependency stays below it.
        warnings.simplefilter("ignore", DeprecationWarning)
        choice = _solve(choices, minimise, limits)
    return _spend_the_rest(choices, choice, limits) if choice and minimise == "score" else choice


def _solve(choices: Choices, minimise: Measure, limits: Mapping[Measure, float]) -> dict[str, str] | None:
    import pulp

    problem = pulp.LpProblem("precision", pulp.LpMinimize)
    taken: dict[tuple[str, str], pulp.LpVariable] = {}
    for index, members in enumerate(choices.groups):
        formats = dict.fromkeys(option for layer in members for option in choices.scores[layer])
        variables = {option: pulp.LpVariable(f"x_{index}_{option}", cat="Binary") for option in formats}
        problem += pulp.lpSum(variables.values()) == 1
        for layer in members:
            for option, variable in variables.items():
                # A layer without kernels for its group's format is float, whatever the group decides.
                known = option if option in choices.scores[layer] else FLOAT
                taken[layer, known] = taken.get((layer, known), 0) + variable
    expressions = {measure: _expression(choices, measure, taken, problem) for measure in {"score", minimise, *limits}}
    total = sum(max(by_format.values()) for by_format in choices.scores.values())
    # CBC works with absolute tolerances near 1e-6: scores are scaled so that the smallest still counts.
    scale = 1e6 / total if total > 0 else 1.0
    if minimise == "score":
        problem += scale * expressions["score"]
    else:
        problem += expressions[minimise] + 1e-9 * scale * expressions["score"]
    for measure, limit in limits.items():
        factor = scale if measure == "score" else 1 / limit if limit else 1.0
        problem += factor * expressions[measure] <= factor * limit * (1 + TOLERANCE)
    gap = LATENCY_GAP if minimise == "latency" else 0.0
    status = problem.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=gap, timeLimit=60))
    if pulp.LpStatus[status] != "Optimal":
        return None
    return {layer: option for (layer, option), variable in taken.items() if pulp.value(variable) > 0.5}


def _expression(
    choices: Choices, measure: Measure, taken: Mapping[tuple[str, str], Any], problem: pulp.LpProblem
) -> Any:
    """A measure as a linear expression of the decisions."""
    import pulp

    if measure == "score":
        return pulp.lpSum(choices.scores[layer][option] * variable for (layer, option), variable in taken.items())
    if measure != "latency":
        sizes = choices.sizes[measure]
        total = sum(sizes.values())
        return pulp.lpSum(
            FORMATS[option].bits * sizes[layer] / total * variable for (layer, option), variable in taken.items()
        )
    latency = choices._latency()
    terms = [latency.layers_ms[layer][option] * variable for (layer, option), variable in taken.items()]
    for index, (source, readers) in enumerate(latency.links.items()):
        quantize, dequantize = latency.border_ms(source)
        # Both are 1 if any reader differs from the source in that direction; minimising keeps them from being 1 idly.
        for kind, cost in (("q", quantize), ("d", dequantize)):
            if cost <= 0:
                continue
            border = pulp.LpVariable(f"{kind}_{index}", lowBound=0)
            terms.append(cost * border)
            for reader in readers:
                difference = taken[source, FLOAT] - taken[reader, FLOAT]
                problem += border >= (difference if kind == "q" else -difference)
    return latency.rest_ms + pulp.lpSum(terms)


def _spend_the_rest(choices: Choices, choice: dict[str, str], limits: Mapping[Measure, float]) -> dict[str, str]:
    """Give float to further groups that still fit: a score too small for the solver to see is no reason to quantize."""

    def score(members: tuple[str, ...]) -> float:
        return sum(choices.scores[layer][choice[layer]] for layer in members)

    for members in sorted(choices.groups, key=score, reverse=True):
        trial = choice | dict.fromkeys(members, FLOAT)
        if trial != choice and all(
            choices.measure(name, trial) <= limit * (1 + TOLERANCE) for name, limit in limits.items()
        ):
            choice = trial
    return choice
