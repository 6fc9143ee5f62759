# SPDX-License-Identifier: AGPL-3.0-or-later
"""What becomes of a plan after it was made: checked against a model, edited by hand, repaired after a failed build."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import replace

from ultra_mq.core import FLOAT, FORMATS, PlanError
from ultra_mq.plan.precision_plan import KEPT, LayerPlan, PrecisionPlan, with_figures
from ultra_mq.plan.prices import Prices
from ultra_mq.prepare import PreparedModel


def check_plan(plan: PrecisionPlan, model: PreparedModel) -> None:
    """Refuse a plan that cannot be carried out on a model.

    Raises:
        PlanError: It was made for other weights, its layers are not those of the model, or it quantizes a layer that
            stays in float or that there are no kernels of the format for.
    """
    if plan.model_fingerprint != model.fingerprint:
        raise PlanError(
            f"The plan was made for '{plan.model}' and '{model.source}' has other weights. "
            f"Apply it to the weights it was made for, or make a new plan."
        )
    formats = {layer.name: layer.format for layer in plan.layers}
    known = [layer.name for layer in (*model.quantizable, *model.kept)]
    if unknown := [name for name in formats if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f", did you mean '{near[0]}'?" if near else ""
        raise PlanError(f"The plan names layer '{unknown[0]}', which '{model.source}' does not have{hint}.")
    if missing := [name for name in known if name not in formats]:
        raise PlanError(f"The plan says nothing of layer '{missing[0]}'. Give it a format, {FLOAT} to leave it alone.")
    for layer in model.kept:
        if formats[layer.name] != FLOAT:
            raise PlanError(
                f"The plan quantizes '{layer.name}', which is part of the head's outputs and stays in float. "
                f"Set its format back to {FLOAT}."
            )
    for layer in model.quantizable:
        if layer.channels < FORMATS[formats[layer.name]].min_channels:
            raise PlanError(
                f"The plan gives '{layer.name}' the format {formats[layer.name]}, and there are no kernels of it for "
                f"{layer.channels} channels. Set another format."
            )


def settle_plan(plan: PrecisionPlan, model: PreparedModel, prices: Prices) -> PrecisionPlan:
    """A plan that may have been edited by hand, with the figures of what it says now.

    Layers whose format was changed are marked as the user's; what they score and cost is reckoned anew, or left open
    where it is not known.

    Args:
        plan: Plan as read from a file.
        model: Prepared model.
        prices: What layers cost in the plan's cost model.

    Raises:
        PlanError: The plan does not fit the model, see ``check_plan``.
    """
    check_plan(plan, model)
    layers = tuple(layer if layer.why in KEPT else _settle_layer(layer, plan, prices) for layer in plan.layers)
    return with_figures(plan, layers, model, prices)


def repair_plan(plan: PrecisionPlan, names: Collection[str], model: PreparedModel, prices: Prices) -> PrecisionPlan:
    """The plan with these layers in float, marked as repaired, and the figures that it then reaches.

    Args:
        plan: Plan of this model.
        names: Layers that the builder could not quantize.
        model: Prepared model.
        prices: What layers cost in the plan's cost model.
    """
    layers = tuple(
        LayerPlan(layer.name, FLOAT, 0.0, prices.of(layer.name, FLOAT), "repaired")
        if layer.name in names and layer.format != FLOAT
        else layer
        for layer in plan.layers
    )
    return with_figures(plan, layers, model, prices)


def _settle_layer(layer: LayerPlan, plan: PrecisionPlan, prices: Prices) -> LayerPlan:
    cost = prices.of(layer.name, layer.format)
    if not _is_edited(layer, plan, prices):
        return replace(layer, cost=layer.cost if cost is None else cost)
    return LayerPlan(layer.name, layer.format, 0.0 if layer.format == FLOAT else None, cost, "user")


def _is_edited(layer: LayerPlan, plan: PrecisionPlan, prices: Prices) -> bool:
    """Whether the format of a layer is not the one that its figures were written for, as far as they tell."""
    if layer.format == FLOAT and layer.score:
        return True
    # MACs depend on the image size and milliseconds on the machine; weights stay what they are.
    return plan.cost_model == "weights" and layer.cost != prices.of(layer.name, layer.format)
