# SPDX-License-Identifier: AGPL-3.0-or-later
"""Scores, costs and limits to the best choice of formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ultra_mq.core import FLOAT, FORMATS, BudgetError, silent_streams, warn
from ultra_mq.plan.cost import CostModel, average_bits
from ultra_mq.plan.latency import LatencyModel
from ultra_mq.plan.precision_plan import PrecisionPlan, check_bits, make_plan
from ultra_mq.plan.prices import Prices
from ultra_mq.plan.scores import Sensitivity
from ultra_mq.prepare import PreparedModel

Measure = Literal["score", "weights", "macs", "latency"]
"""What a choice is measured in: summed scores, bits averaged over weights or MACs, milliseconds."""

TOLERANCE = 1e-9
"""Share by which rounding may exceed a limit."""

LATENCY_GAP = 1e-4
"""Share of the predicted latency that is not worth the solver's time; the prediction is far less exact."""

TIME_LIMIT_S = 300.0
"""A limit against a hang: problems of YOLO models take well under a second. What it cuts short is said."""

OUT_OF_TIME = 1
"""Status of ``scipy.optimize.milp``."""


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
            return self.learnt_latency().predict(choice)
        return average_bits(choice, self.sizes[measure])

    def prices(self, cost_model: CostModel) -> Prices:
        """What layers cost under a cost model; for a latency the sizes are weights."""
        return Prices(cost_model, self.sizes[cost_model if cost_model in self.sizes else "weights"], self.latency)

    def learnt_latency(self) -> LatencyModel:
        """The prediction of the latency.

        Raises:
            BudgetError: There is none.
        """
        if self.latency is None:
            raise BudgetError("A budget of latency needs measured times. Use --cost latency.")
        return self.latency


def make_choices(
    sensitivity: Sensitivity,
    sizes: Mapping[CostModel, Mapping[str, float]],
    groups: tuple[tuple[str, ...], ...] | None = None,
    latency: LatencyModel | None = None,
) -> Choices:
    """The choices of a scored model.

    Args:
        sensitivity: Scores of every quantizable layer, in the formats that there are kernels of.
        sizes: Cost model to layer sizes.
        groups: From ``groups.find_groups``; every layer decides alone where it is None.
        latency: Prediction of the latency, where it counts.
    """
    scores = {name: {FLOAT: 0.0, **by_format} for name, by_format in sensitivity.scores.items()}
    return Choices(scores, sizes, groups or tuple((name,) for name in scores), latency)


def solve_plan(model: PreparedModel, choices: Choices, cost_model: CostModel, bits: float) -> PrecisionPlan:
    """Find the plan with the lowest sum of scores whose bits stay within the budget.

    Args:
        model: Prepared model the choices belong to.
        choices: What there is to choose.
        cost_model: What the bits are averaged over.
        bits: Budget; below the floor every layer takes its cheapest format.

    Raises:
        BudgetError: ``bits`` is outside (0, 16].
    """
    check_bits(bits)
    cheapest = {name: min(by_format, key=lambda o: FORMATS[o].bits) for name, by_format in choices.scores.items()}
    limit = max(bits, choices.measure(cost_model, cheapest))
    choice = solve_choice(choices, "score", {cost_model: limit})
    if choice is None:
        raise BudgetError(f"No plan meets {bits:g} bits. Raise --bits.")
    return make_plan(model, choice, choices.prices(cost_model), budget_bits=bits, scores=choices.scores)


def solve_choice(choices: Choices, minimise: Measure, limits: Mapping[Measure, float]) -> dict[str, str] | None:
    """Find the choice with the least of one measure that keeps to limits of others.

    A multiple-choice knapsack, solved to the optimum as an integer program by HiGHS: the problem that ModelOpt's
    ``auto_quantize`` solves for bits, with the scores scaled so that the solver's tolerance hides none of them, and
    with a cost for each border between precisions where latency counts.

    Args:
        choices: What there is to choose.
        minimise: What shall be least; among equals the lowest score wins.
        limits: Measure to its largest value.

    Returns:
        Layer to format, or None where no choice keeps to the limits.

    Raises:
        BudgetError: The solver ran out of time before it found any choice.
    """
    choice = _solve(choices, minimise, limits)
    return _spend_the_rest(choices, choice, limits) if choice and minimise == "score" else choice


def _solve(choices: Choices, minimise: Measure, limits: Mapping[Measure, float]) -> dict[str, str] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp

    program = _Program(choices)
    expressions = {measure: program.expression(measure) for measure in {"score", minimise, *limits}}
    total = sum(max(by_format.values()) for by_format in choices.scores.values())
    # HiGHS works with absolute tolerances near 1e-6: scores are scaled so that the smallest still counts.
    scale = 1e6 / total if total > 0 else 1.0
    score, objective = scale * expressions["score"][0], expressions[minimise][0]
    objective = score if minimise == "score" else objective + 1e-9 * score
    for measure, limit in limits.items():
        factor = scale if measure == "score" else 1 / limit if limit else 1.0
        row, constant = expressions[measure]
        program.require(factor * row, upper=factor * (limit * (1 + TOLERANCE) - constant))
    rows, lower, upper = program.constraints()
    with silent_streams():  # HiGHS prints lines for its own developers
        result = milp(
            objective,
            integrality=program.integrality,
            bounds=Bounds(0, program.most),
            constraints=LinearConstraint(rows, lower, upper),
            options={"mip_rel_gap": LATENCY_GAP if minimise == "latency" else 0.0, "time_limit": TIME_LIMIT_S},
        )
    if result.x is None:
        if result.status == OUT_OF_TIME:
            raise BudgetError(
                f"The solver found no plan in {TIME_LIMIT_S:.0f} s; it does not know whether there is one. "
                f"Use --cost weights, or groups=true so that there is less to decide."
            )
        return None
    if result.status == OUT_OF_TIME:
        warn(
            f"the solver stopped after {TIME_LIMIT_S:.0f} s, {100 * result.mip_gap:.2g} % from the optimum at most; "
            f"another machine may find another plan."
        )
    return {layer: option for (layer, option), row in program.taken.items() if row @ result.x > 0.5}


class _Program:
    """The integer program: one variable for each group and format, one for each border that costs.

    Attributes:
        taken: Layer and format to the row that is 1 where the layer takes the format.
        integrality: 1 for each variable that must be whole.
        most: Largest value of each variable.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        decided = [
            (members, dict.fromkeys(option for layer in members for option in choices.scores[layer]))
            for members in choices.groups
        ]
        latency = choices.latency
        self.borders = [
            (source, readers, sign, cost)
            for source, readers in (latency.links if latency else {}).items()
            for sign, quantized in ((1, False), (-1, True))
            if latency and (cost := latency.border_ms(source, quantized)) > 0
        ]
        whole = sum(len(options) for _, options in decided)
        self.size = whole + len(self.borders)
        self.integrality = np.repeat([1, 0], [whole, len(self.borders)])
        self.most = np.repeat([1.0, np.inf], [whole, len(self.borders)])
        self.taken: dict[tuple[str, str], np.ndarray] = {}
        self._rows: list[tuple[np.ndarray, float, float]] = []
        first = 0
        for members, options in decided:
            variables = {option: self._unit(first + index) for index, option in enumerate(options)}
            first += len(options)
            self.require(sum(variables.values(), np.zeros(self.size)), lower=1, upper=1)
            for layer in members:
                for option, variable in variables.items():
                    # A layer without kernels for its group's format is float, whatever the group decides.
                    known = option if option in choices.scores[layer] else FLOAT
                    self.taken[layer, known] = self.taken.get((layer, known), np.zeros(self.size)) + variable
        # A border is 1 if any reader differs from the source in its direction; minimising keeps it from being 1 idly.
        for index, (source, readers, sign, _) in enumerate(self.borders):
            for reader in readers:
                difference = sign * (self.taken[source, FLOAT] - self.taken[reader, FLOAT])
                self.require(self._unit(whole + index) - difference, lower=0)

    def require(self, row: np.ndarray, lower: float = -np.inf, upper: float = np.inf) -> None:
        """Add a constraint."""
        self._rows.append((row, lower, upper))

    def constraints(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All constraints: rows, lower and upper bounds."""
        rows, lower, upper = zip(*self._rows, strict=True)
        return np.array(rows), np.array(lower), np.array(upper)

    def expression(self, measure: Measure) -> tuple[np.ndarray, float]:
        """A measure as a row of coefficients and a constant."""
        choices = self.choices
        constant, prices = 0.0, {}
        if measure == "score":
            prices = {(layer, option): choices.scores[layer][option] for layer, option in self.taken}
        elif measure == "latency":
            latency = choices.learnt_latency()
            constant = latency.rest_ms
            prices = {(layer, option): latency.layers_ms[layer][option] for layer, option in self.taken}
        else:
            sizes = choices.sizes[measure]
            total = sum(sizes.values())
            prices = {(layer, option): FORMATS[option].bits * sizes[layer] / total for layer, option in self.taken}
        row = sum((price * self.taken[key] for key, price in prices.items()), np.zeros(self.size))
        if measure == "latency":
            row[self.size - len(self.borders) :] = [cost for *_, cost in self.borders]
        return row, constant

    def _unit(self, index: int) -> np.ndarray:
        row = np.zeros(self.size)
        row[index] = 1.0
        return row


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
