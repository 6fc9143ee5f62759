# SPDX-License-Identifier: AGPL-3.0-or-later
"""The search against a truth that is known: losses and latencies are made up, plans and solver are real."""

import dataclasses
import itertools

import numpy as np
import pytest

from ultra_mq.core.errors import BudgetError
from ultra_mq.measure.bench import Bench, Latency
from ultra_mq.plan.latency import LatencyModel
from ultra_mq.plan.solve import solve_choice
from ultra_mq.search.budgets import MAX_EVALUATIONS, TIGHT, search
from ultra_mq.session.artefacts import Artefacts, float_artefacts
from ultra_mq.session.recipe import make_recipe
from ultra_mq.session.session import open_session
from ultra_mq.session.stages import open_choices

MAIN = "metrics/mAP50-95(B)"


@pytest.fixture
def hunt(weights, shapes, monkeypatch):
    """Run a search whose plans lose ``loss(score)`` points, on a target as fast as ``speed(plan)`` says."""

    def run(budgets, loss=None, latency=None, speed=None, drifting=0.0, **settings):
        document = {
            "model": str(weights), "data": str(shapes), "imgsz": 160, "runtime": "onnxruntime",
            "calibration": {"images": 8, "bias_correction": 0}, "sensitivity": {"images": 4, "method": "gradient"},
            "variants": [{"name": "found", **budgets}], **settings,
        }  # fmt: skip
        session = open_session(make_recipe(document))
        total = open_choices(session).measure("score", dict.fromkeys(names(session), "int8"))

        def evaluate(self, label, target=None):
            if self.plan is None:
                return reference(session)
            share = sum(layer.score or 0.0 for layer in self.plan.layers) / total
            return dataclasses.replace(reference(session), metrics={MAIN: reference(session).main - loss(share) / 100})

        comparisons = itertools.count()

        def time(session, artefacts, target):
            drift = 1 + drifting * next(comparisons)
            reference = next(iter(artefacts))
            times = {name: drift * speed(made.plan) for name, made in artefacts.items()}
            found = {name: timed(ms, None if name == reference else times[reference]) for name, ms in times.items()}
            return Bench(found, {}, (None, None), (), reference)

        if loss:
            reference(session)
            monkeypatch.setattr("ultra_mq.session.artefacts.Artefacts.evaluate", evaluate)
        if latency:
            monkeypatch.setattr("ultra_mq.search.verify.learn_latency", lambda session, target: latency(session))
            monkeypatch.setattr("ultra_mq.search.verify.time_artefacts", time)
        return session, search(session, session.recipe.variants[0])

    return run


def names(session):
    return [layer.name for layer in session.model.quantizable]


EVALUATE = Artefacts.evaluate


def reference(session):
    return EVALUATE(float_artefacts(session), "Evaluating FP32")


def timed(ms, base):
    speedup, interval = (base / ms, (0.99 * base / ms, 1.01 * base / ms)) if base else (None, None)
    return Latency({}, 10, ms, ms, ms, ms, 1e3 / ms, speedup, interval, 0.01)


def toy_latency(int8=0.5):
    """Every layer takes a millisecond in float, and ``int8`` of one in INT8."""

    def make(session):
        layers = {name: {"fp16": 1.0, "int8": int8} for name in names(session)}
        return LatencyModel({}, 0.0, layers, {}, {})

    return make


@pytest.mark.parametrize(("power", "max_drop"), [(0.35, 2.0), (0.5, 0.3), (1.0, 0.3)])
def test_the_cheapest_plan_within_a_loss(hunt, power, max_drop):
    session, found = hunt({"max_drop": max_drop}, loss=lambda share: 5 * share**power)
    assert found.met
    assert found.evaluations <= MAX_EVALUATIONS
    assert found.chosen.drop <= max_drop
    choices = open_choices(session)
    total = choices.measure("score", dict.fromkeys(names(session), "int8"))
    best = solve_choice(choices, "weights", {"score": total * (max_drop / 5) ** (1 / power)})
    assert found.chosen.cost - choices.measure("weights", best) <= 2 * TIGHT * 8


def test_all_int8_where_it_loses_little(hunt):
    _, found = hunt({"max_drop": 1.0}, loss=lambda share: 0.5 * share)
    assert (found.evaluations, found.chosen.plan.bits, found.met) == (1, 8, True)


def test_float_where_nothing_else_holds(hunt):
    _, found = hunt({"max_drop": 0.0}, loss=lambda share: 1.0 if share else 0.0)
    assert found.met
    assert not found.chosen.plan.quantized
    assert "nothing to gain from quantizing" in " ".join(found.findings)


def test_every_step_is_kept_with_its_budget(hunt):
    _, found = hunt({"max_drop": 0.3}, loss=lambda share: 5 * share**0.5)
    assert [step.name for step in found.steps][:2] == ["float", "step 1"]
    assert all(step.plan.budget == {"max_drop": 0.3} for step in found.steps)
    assert all(step.plan.budget_bits is None for step in found.steps)


def test_a_latency_is_met_though_the_prediction_is_off(hunt):
    _, found = hunt(
        {"max_latency_ms": 60.0},
        latency=toy_latency(0.5),
        speed=lambda plan: 81 - 0.4 * len(plan.quantized),
    )
    assert found.met
    assert 58 < found.chosen.latency_ms <= 60
    assert found.chosen.score < max(step.score for step in found.steps if step.name != "float")


def test_a_speedup_refers_to_float_in_the_same_rounds(hunt):
    """The machine takes 30 % longer at each comparison: milliseconds of two of them tell nothing."""
    speed = {"speed": lambda plan: 162 - len(plan.quantized), "latency": toy_latency(0.5)}
    _, steady = hunt({"min_speedup": 1.5}, **speed)
    _, drifting = hunt({"min_speedup": 1.5}, drifting=0.3, **speed)
    assert steady.met
    assert drifting.met
    assert drifting.chosen.plan.quantized == steady.chosen.plan.quantized
    assert drifting.chosen.speedup == pytest.approx(162 / (162 - len(steady.chosen.plan.quantized)))


def test_a_budget_that_cannot_be_met_is_said_and_the_nearest_given(hunt):
    _, found = hunt(
        {"max_latency_ms": 30.0}, latency=toy_latency(0.5), speed=lambda plan: 81 - 0.5 * len(plan.quantized)
    )
    assert not found.met
    assert len(found.chosen.plan.quantized) == 81
    assert "No plan that was tried meets max_latency_ms=30. The nearest takes 40.5 ms." in found.findings


def test_int8_that_does_not_pay_is_found_out(hunt):
    _, found = hunt(
        {"max_drop": 5.0},
        loss=lambda share: share,
        latency=toy_latency(1.4),
        speed=lambda plan: 81 + 0.4 * len(plan.quantized),
        cost_model="latency",
    )
    assert not found.chosen.plan.quantized
    assert "INT8 throughout does not pay" in found.findings[0]


def test_the_fastest_measured_plan_wins_over_the_fastest_predicted(hunt):
    """All layers in INT8 are predicted slow and measured fast; they hold, so they are taken."""
    _, found = hunt(
        {"max_drop": 5.0},
        loss=lambda share: share,
        latency=toy_latency(1.1),
        speed=lambda plan: 81 - 0.4 * len(plan.quantized),
        cost_model="latency",
    )
    assert found.chosen.name == "int8"
    assert found.chosen.drop == pytest.approx(1.0)


def test_bits_and_speed_together(hunt):
    _, found = hunt(
        {"bits": 9, "min_speedup": 1.2}, latency=toy_latency(0.5), speed=lambda plan: 81 - 0.5 * len(plan.quantized)
    )
    assert found.met
    assert found.chosen.plan.bits <= 9 + 1e-6


def test_a_loss_of_map_needs_labels(hunt, weights, shapes, tmp_path):
    import shutil

    import yaml

    bare = tmp_path / "bare"
    shutil.copytree(shapes.parent / "images", bare / "images")
    document = yaml.safe_load(shapes.read_text()) | {"path": str(bare)}
    (bare / "bare.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(BudgetError, match="--metric agreement"):
        hunt({"max_drop": 1.0, "metric": "map"}, data=str(bare / "bare.yaml"))


def test_predictions_are_ranked(hunt):
    _, found = hunt(
        {"max_latency_ms": 60.0}, latency=toy_latency(0.5), speed=lambda plan: 81 - 0.45 * len(plan.quantized)
    )
    assert found.rank_correlation == pytest.approx(1)
    assert 0 < found.largest_error < 0.2
    assert np.isfinite(found.largest_error)
