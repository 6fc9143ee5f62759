# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plans that were edited by hand, repaired, or do not fit."""

import dataclasses

import pytest

from ultra_mq.core.errors import PlanError
from ultra_mq.plan.latency import LatencyModel
from ultra_mq.plan.precision_plan import LayerPlan, make_plan, uniform_plan
from ultra_mq.plan.prices import Prices, weight_prices
from ultra_mq.plan.revision import check_plan, repair_plan, settle_plan

LAYER = "model.10.m.0.attn.pe.conv"


def edit(plan, **formats):
    """The plan as a person would leave it: formats changed, all figures as they were."""
    layers = tuple(
        dataclasses.replace(layer, format=formats.get(layer.name.replace(".", "_"), layer.format))
        for layer in plan.layers
    )
    return dataclasses.replace(plan, layers=layers)


def layer_of(plan, name):
    return next(layer for layer in plan.layers if layer.name == name)


def test_two_layers_one_of_them_edited(model):
    """The case of the review: 8 bits in the file, 12 in truth."""
    layers = tuple(dataclasses.replace(model.quantizable[0], name=name, numel=100) for name in ("a", "b"))
    small = dataclasses.replace(model, quantizable=layers, kept=())
    prices = weight_prices(small)
    scores = {"a": {"int8": 3.0}, "b": {"int8": 1.0}}
    plan = make_plan(small, {"a": "int8", "b": "int8"}, prices, budget_bits=8, scores=scores)
    assert plan.bits == 8
    settled = settle_plan(edit(plan, a="fp16"), small, prices)
    assert (settled.bits, settled.budget_bits_reached) == (12, 12)
    assert layer_of(settled, "a") == LayerPlan("a", "fp16", 0.0, 1600, "user")
    assert layer_of(settled, "b") == layer_of(plan, "b")


def test_a_layer_without_a_score_is_known_by_its_cost(model):
    plan = uniform_plan(model, "int8")
    settled = settle_plan(edit(plan, model_0_conv="fp16"), model, weight_prices(model))
    numels = {layer.name: layer.numel for layer in model.quantizable}
    assert settled.bits == pytest.approx(8 + 8 * numels["model.0.conv"] / sum(numels.values()))
    assert layer_of(settled, "model.0.conv").cost == 16 * numels["model.0.conv"]


def test_a_plan_that_nobody_edited_stays_what_it_is(plan, model):
    assert settle_plan(plan, model, weight_prices(model)) == plan


def test_milliseconds_of_an_edited_plan_are_not_made_up(model, sensitivity):
    latency = toy_latency(model)
    prices = Prices("latency", weight_prices(model).sizes, latency)
    choice = {layer.name: "int8" for layer in model.quantizable}
    plan = make_plan(model, choice, prices, scores=sensitivity.scores)
    assert plan.predicted_ms == pytest.approx(81 * 0.5)
    unknown = Prices("latency", prices.sizes)
    settled = settle_plan(edit(plan, model_0_conv="fp16"), model, unknown)
    assert settled.predicted_ms is None
    assert layer_of(settled, "model.0.conv").cost is None
    assert settle_plan(edit(plan, model_0_conv="fp16"), model, prices).predicted_ms == pytest.approx(81 * 0.5 + 0.5)


def test_plan_of_other_weights(plan, model):
    check_plan(plan, model)
    with pytest.raises(PlanError, match="has other weights"):
        check_plan(dataclasses.replace(plan, model_fingerprint="0"), model)


def renamed(plan, old, new):
    layers = tuple(dataclasses.replace(layer, name=new) if layer.name == old else layer for layer in plan.layers)
    return dataclasses.replace(plan, layers=layers)


def test_layers_that_are_not_the_models(plan, model):
    with pytest.raises(PlanError, match=r"'model\.2\.cv9\.conv', which .* does not have, did you mean 'model\.2\.cv"):
        check_plan(renamed(plan, "model.2.cv1.conv", "model.2.cv9.conv"), model)
    without = dataclasses.replace(plan, layers=plan.layers[1:])
    with pytest.raises(PlanError, match=r"says nothing of layer 'model\.0\.conv'"):
        check_plan(without, model)


def test_a_kept_layer_stays_in_float(plan, model):
    with pytest.raises(PlanError, match=r"'model\.23\.dfl\.conv', which is part of the head's outputs"):
        check_plan(edit(plan, model_23_dfl_conv="int8"), model)


def test_a_format_without_kernels_for_the_layer(plan, model):
    with pytest.raises(PlanError, match="no kernels of it for 3 channels"):
        check_plan(edit(plan, model_0_conv="fp8"), model)


def toy_latency(model):
    layers = {layer.name: {"fp16": 1.0, "int8": 0.5} for layer in model.quantizable}
    return LatencyModel({}, 0.0, layers, {}, {})


def test_a_repair_is_marked_and_counted(model):
    plan = uniform_plan(model, "int8")
    repaired = repair_plan(plan, [LAYER], model, weight_prices(model))
    assert (layer_of(repaired, LAYER).format, layer_of(repaired, LAYER).why) == ("fp16", "repaired")
    numel = {layer.name: layer.numel for layer in model.quantizable}
    expected = 8 + 8 * numel[LAYER] / sum(numel.values())
    assert repaired.bits == pytest.approx(expected)
    assert repaired.budget_bits_reached == pytest.approx(expected)
    assert len(repaired.quantized) == len(plan.quantized) - 1


def test_a_repair_of_a_plan_for_a_latency_counts_milliseconds_as_milliseconds(model, sensitivity):
    """Milliseconds were taken for bits times weights, and the prediction stayed what it was."""
    prices = Prices("latency", weight_prices(model).sizes, toy_latency(model))
    choice = {layer.name: "int8" for layer in model.quantizable}
    plan = make_plan(model, choice, prices, scores=sensitivity.scores)
    repaired = repair_plan(plan, [LAYER], model, prices)
    assert layer_of(repaired, LAYER).cost == 1.0
    assert repaired.predicted_ms == pytest.approx(80 * 0.5 + 1.0)
    assert 8 < repaired.budget_bits_reached < 8.1
