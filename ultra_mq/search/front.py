# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plans along the front from the cheapest one to float, to be proven side by side."""

from __future__ import annotations

from typing import Any

from ultra_mq.plan import PrecisionPlan, solve_choice
from ultra_mq.search.probing import learn_latency
from ultra_mq.search.verify import plan_of
from ultra_mq.session import Metric, Recipe, Session, make_recipe, open_choices


def front_plans(session: Session, points: int) -> dict[str, PrecisionPlan]:
    """Plans of least scores at costs between the cheapest plan and float, closer together where it is cheap.

    Args:
        session: The run; its ``cost_model`` says what is cheap.
        points: Number of plans.

    Returns:
        Variant name to plan; costs that give the same plan give it once.
    """
    recipe = session.recipe
    cost = recipe.cost_model
    choices = open_choices(session, learn_latency(session, session.target) if cost == "latency" else None)
    cheapest = solve_choice(choices, cost, {}) or {}
    low, high = choices.measure(cost, cheapest), choices.measure(cost, {})
    plans: dict[str, PrecisionPlan] = {}
    seen: set[tuple[tuple[str, str], ...]] = set()
    for number in range(points):
        # The loss falls steeply at first, so that even steps would leave out where the choice is.
        limit = low + (high - low) * (number / points) ** 2
        choice = cheapest if number == 0 else solve_choice(choices, "score", {cost: limit})
        plan = plan_of(session, choices, choice or cheapest)
        key = tuple(sorted(plan.quantized.items()))
        if key not in seen:
            seen.add(key)
            plans[f"front-{len(plans) + 1}"] = plan
    return plans


def front_recipe(
    recipe: Recipe, plans: dict[str, PrecisionPlan], max_drop: float | None, metric: Metric | None
) -> Recipe:
    """The recipe that proves plans beside uniform FP16 and INT8."""
    variants: list[dict[str, Any]] = [{"name": "fp16", "precision": "fp16"}, {"name": "int8", "precision": "int8"}]
    variants += [{"name": name, "bits": plan.bits} for name, plan in plans.items()]
    document = {**recipe.model_dump(mode="json"), "variants": variants}
    if max_drop is not None or metric is not None:
        document["criteria"] = {"max_drop": max_drop, "metric": metric}
    return make_recipe(document)
