# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sensitivity, sizes and a budget to the best ``PrecisionPlan``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from ultra_mq.cost import CostModel, cost_in_format
from ultra_mq.errors import BudgetError
from ultra_mq.formats import FLOAT, FORMATS
from ultra_mq.model import PreparedModel
from ultra_mq.plan import PrecisionPlan, check_bits, make_plan
from ultra_mq.sensitivity import Sensitivity


def solve_plan(
    model: PreparedModel,
    sensitivity: Sensitivity,
    sizes: Mapping[str, float],
    bits: float,
    *,
    cost_model: CostModel = "weights",
    data_fingerprint: str | None = None,
) -> PrecisionPlan:
    """Find the plan with the lowest sum of scores whose cost stays within the budget.

    A multiple-choice knapsack, solved to the optimum as an integer program by CBC: the problem that
    ModelOpt's ``auto_quantize`` solves, with the scores scaled so that the solver's tolerance hides none of them.

    Args:
        model: Prepared model the scores belong to.
        sensitivity: Scores of every quantizable layer.
        sizes: Layer sizes from ``cost.layer_sizes``.
        bits: Budget in bits averaged over ``sizes``; below the floor every layer takes its cheapest format.
        cost_model: What ``sizes`` count.
        data_fingerprint: SHA-256 of the scored images.

    Raises:
        BudgetError: ``bits`` is outside (0, 16].
    """
    check_bits(bits)
    layers = list(sensitivity.scores)
    limit = bits * sum(sizes[name] for name in layers)
    channels = {layer.name: layer.channels for layer in model.quantizable}
    options = {
        name: {FLOAT: 0.0}
        | {option: score for option, score in scores.items() if channels[name] >= FORMATS[option].min_channels}
        for name, scores in sensitivity.scores.items()
    }
    floor = sum(min(cost_in_format(sizes[name], option) for option in options[name]) for name in layers)
    with warnings.catch_warnings():
        # pulp announces its version 4 with a warning for every variable; the dependency stays below it.
        warnings.simplefilter("ignore", DeprecationWarning)
        choice = _solve_knapsack(options, sizes, max(limit, floor))
    return make_plan(
        model,
        choice,
        sizes,
        budget_bits=bits,
        cost_model=cost_model,
        scores=sensitivity.scores,
        data_fingerprint=data_fingerprint,
    )


def _solve_knapsack(
    options: Mapping[str, Mapping[str, float]], sizes: Mapping[str, float], limit: float
) -> dict[str, str]:
    import pulp

    total = sum(max(by_format.values()) for by_format in options.values())
    # CBC works with absolute tolerances near 1e-6: scores are scaled so that the smallest still counts.
    scale = 1e6 / total if total > 0 else 1.0
    problem = pulp.LpProblem("precision", pulp.LpMinimize)
    taken = {
        (layer, option): pulp.LpVariable(f"x_{index}_{option}", cat="Binary")
        for index, (layer, by_format) in enumerate(options.items())
        for option in by_format
    }
    problem += pulp.lpSum(scale * options[layer][option] * variable for (layer, option), variable in taken.items())
    for layer, by_format in options.items():
        problem += pulp.lpSum(taken[layer, option] for option in by_format) == 1
    costs = {pair: cost_in_format(sizes[pair[0]], pair[1]) / limit for pair in taken}
    problem += pulp.lpSum(costs[pair] * variable for pair, variable in taken.items()) <= 1 + 1e-9
    status = problem.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=0.0, timeLimit=60))
    if pulp.LpStatus[status] != "Optimal":
        raise BudgetError(f"No plan meets the budget ({pulp.LpStatus[status]}). Raise --bits.")
    choice = {layer: option for (layer, option), variable in taken.items() if variable.value() > 0.5}
    return _spend_the_rest(choice, options, sizes, limit)


def _spend_the_rest(
    choice: dict[str, str], options: Mapping[str, Mapping[str, float]], sizes: Mapping[str, float], limit: float
) -> dict[str, str]:
    """Give float to further layers that still fit: a score too small for the solver to see is no reason to quantize."""
    room = limit - sum(cost_in_format(sizes[layer], option) for layer, option in choice.items())
    for layer in sorted(choice, key=lambda name: -options[name][choice[name]]):
        extra = cost_in_format(sizes[layer], FLOAT) - cost_in_format(sizes[layer], choice[layer])
        if 0 < extra <= room * (1 + 1e-9):
            choice[layer], room = FLOAT, room - extra
    return choice
