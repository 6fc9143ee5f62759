# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses
import itertools

import numpy as np
import pytest
import yaml

from ultra_mq.core.errors import BudgetError, PlanError
from ultra_mq.plan.cost import layer_sizes
from ultra_mq.plan.precision_plan import check_bits, load_plan, make_plan, save_plan, uniform_plan
from ultra_mq.plan.prices import weight_prices
from ultra_mq.plan.scores import Sensitivity


def toy(model, scores, numels):
    """A model of few layers with known scores."""
    layers = tuple(dataclasses.replace(model.quantizable[0], name=f"l{i}", numel=n) for i, n in enumerate(numels))
    sensitivity = Sensitivity("outputs", 1, {f"l{i}": {"int8": s} for i, s in enumerate(scores)})
    return dataclasses.replace(model, quantizable=layers, kept=()), sensitivity


def total_score(plan):
    return sum(layer.score for layer in plan.layers if layer.score is not None)


def test_known_answer(model, solve):
    prepared, sensitivity = toy(model, scores=[10, 1, 7, 2], numels=[100, 100, 100, 100])
    plan = solve(prepared, sensitivity, 12)
    assert plan.quantized == {"l1": "int8", "l3": "int8"}
    assert plan.bits == 12
    assert total_score(plan) == 3


def test_one_large_layer_against_two_small_ones(model, solve):
    # Greedy by score would keep l0 (6) in float; the two others together weigh more (5 + 4) and cost as much.
    prepared, sensitivity = toy(model, scores=[6, 5, 4], numels=[200, 100, 100])
    assert solve(prepared, sensitivity, 12).quantized == {"l0": "int8"}


@pytest.mark.parametrize("seed", range(6))
def test_optimum_of_brute_force(model, solve, seed):
    random = np.random.default_rng(seed)
    scores = 10.0 ** random.uniform(-9, 3, 10)  # twelve decades, where solvers lose the small ones
    numels = random.integers(10, 5000, 10)
    prepared, sensitivity = toy(model, scores, numels)
    bits = random.uniform(8.5, 15)
    best = min(
        float(sum(s for s, q in zip(scores, choice, strict=True) if q))
        for choice in itertools.product([0, 1], repeat=10)
        if sum(n * (8 if q else 16) for n, q in zip(numels, choice, strict=True)) <= bits * numels.sum()
    )
    plan = solve(prepared, sensitivity, bits)
    assert total_score(plan) == pytest.approx(best, rel=1e-5)
    assert plan.bits <= bits + 1e-6


@pytest.mark.parametrize("cost_model", ["weights", "macs"])
def test_budgets_are_reached_and_scores_fall(model, sensitivity, solve, cost_model):
    plans = [solve(model, sensitivity, bits, cost_model) for bits in (8, 9, 10, 12, 16)]
    for plan, bits in zip(plans, (8, 9, 10, 12, 16), strict=True):
        assert plan.budget_bits_reached == pytest.approx(bits, abs=0.02)
        assert plan.budget_bits_reached <= bits + 1e-6
    assert [total_score(plan) for plan in plans] == sorted((total_score(plan) for plan in plans), reverse=True)
    assert plans[-1].quantized == {}


def test_at_least_as_good_as_modelopt(model, sensitivity, solve):
    from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher

    sizes = layer_sizes(model, "weights", 160)
    searcher = AutoQuantizeGradientSearcher()
    searcher.cost_model, searcher.config = "weight", searcher.default_search_config
    searcher.candidate_stats = {
        name: {"formats": ["int8", "fp16"], "scores": [by["int8"], 0.0], "costs": [sizes[name] / 2, sizes[name]]}
        for name, by in sensitivity.scores.items()
    }
    recipes, satisfied = searcher.run_search_with_stats(sum(sizes.values()) * 10 / 16)
    theirs = sum(recipe["scores"] for recipe in recipes.values())
    assert satisfied
    assert total_score(solve(model, sensitivity, 10)) <= theirs * (1 + 1e-9)


def test_bits_below_the_floor_saturate(model, sensitivity, solve):
    plan = solve(model, sensitivity, 7.5)
    assert plan.bits == 8
    assert len(plan.quantized) == 81
    assert plan.budget_bits == 7.5
    assert "floor of 8" in check_bits(7.5)
    assert check_bits(8) is None


@pytest.mark.parametrize("bits", [0, -1, 16.5, float("nan"), float("inf")])
def test_bits_out_of_range(bits):
    with pytest.raises(BudgetError, match=r"outside \(0, 16\]"):
        check_bits(bits)


def test_strict_bits():
    with pytest.raises(BudgetError, match="below the floor"):
        check_bits(7.5, strict=True)


def test_kept_layers_are_listed_and_not_counted(model):
    plan = uniform_plan(model, "int8")
    kept = [layer for layer in plan.layers if layer.why == "kept"]
    assert plan.bits == 8
    assert [(layer.format, layer.cost) for layer in kept] == [("fp16", 0.0)] * 7


def test_round_trip(plan, tmp_path):
    save_plan(plan, tmp_path / "plan.yaml")
    assert load_plan(tmp_path / "plan.yaml") == plan


def damaged(plan, tmp_path, **changes):
    save_plan(plan, tmp_path / "plan.yaml")
    document = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    document.update(changes)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "plan.yaml"


def test_unknown_key_in_a_plan(plan, tmp_path):
    with pytest.raises(PlanError, match="unknown key 'layer', did you mean 'layers'"):
        load_plan(damaged(plan, tmp_path, layer=[]))


def test_unknown_format_in_a_plan(plan, tmp_path):
    path = damaged(plan, tmp_path)
    path.write_text(path.read_text().replace("format: int8", "format: int7", 1))
    with pytest.raises(PlanError, match="format 'int7', which does not exist"):
        load_plan(path)


@pytest.mark.parametrize("text", ["{", "- 1\n", "schema: other\n"])
def test_damaged_plan(tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(PlanError):
        load_plan(tmp_path / "plan.yaml")


def test_a_layer_that_stands_twice(plan, tmp_path):
    path = damaged(plan, tmp_path)
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**document, "layers": [*document["layers"], document["layers"][0]]}))
    with pytest.raises(PlanError, match=r"names layer 'model\.0\.conv' 2 times"):
        load_plan(path)


def test_float_is_no_format_to_choose(model, sensitivity, plan):
    """Choices hold a score for float too, which is not what a plan calls its formats."""
    scores = {layer: {"fp16": 0.0, **by_format} for layer, by_format in sensitivity.scores.items()}
    assert make_plan(model, {}, weight_prices(model), scores=scores).formats == plan.formats == ("int8",)


def test_missing_plan():
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan("nowhere.yaml")


def test_unknown_layer(model):
    with pytest.raises(PlanError, match=r"model\.99"):
        make_plan(model, {"model.99": "int8"}, weight_prices(model))
