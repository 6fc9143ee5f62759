# SPDX-License-Identifier: AGPL-3.0-or-later
"""The race for the fastest plan within a loss, against truths that are known."""

import dataclasses
import itertools
import shutil
from collections import Counter

import pytest

from ultra_mq.core.errors import DataError
from ultra_mq.measure.bench import Bench, Latency
from ultra_mq.measure.bootstrap import ClassLoss, Drop, describe_loss
from ultra_mq.plan.latency import LatencyModel, Timed
from ultra_mq.plan.scores import Sensitivity
from ultra_mq.plan.structure import stage_of
from ultra_mq.search import verify
from ultra_mq.search.budgets import search
from ultra_mq.search.verify import judging_session
from ultra_mq.session.artefacts import Artefacts, float_artefacts
from ultra_mq.session.recipe import make_recipe
from ultra_mq.session.session import open_session

MAIN = "metrics/mAP50-95(B)"
EVALUATE = Artefacts.evaluate


@pytest.fixture
def run(weights, shapes, monkeypatch):
    """Search where stages lose ``loss[stage]`` points and INT8 layers gain ``gain`` ms but for ``border`` a border."""

    def hunt(loss, border=0.0, believed=0.0, gain=0.5, max_drop=1.0, spread=0.005, **settings):
        document = {
            "model": str(weights), "data": str(shapes), "imgsz": 160, "runtime": "onnxruntime", "cost_model": "latency",
            "calibration": {"images": 8, "bias_correction": 0},
            "variants": [{"name": "found", "max_drop": max_drop, **settings.pop("variant", {})}], **settings,
        }  # fmt: skip
        session = open_session(make_recipe(document))
        layers = [layer.name for layer in session.model.quantizable]
        count = Counter(map(stage_of, layers))
        stages = list(count)
        reference = EVALUATE(float_artefacts(session), "Evaluating FP32")

        def changes(choice):
            kinds = [all(layer in choice for layer in layers if stage_of(layer) == stage) for stage in stages]
            return sum(one != other for one, other in itertools.pairwise(kinds))

        def true_ms(choice):
            return len(layers) - gain * len(choice) + border * changes(choice)

        def evaluate(self, label, target=None):
            quantized = self.plan.quantized if self.plan else {}
            lost = sum(loss.get(stage, 0.0) for stage in {stage_of(layer) for layer in quantized})
            return dataclasses.replace(reference, metrics={MAIN: reference.main - lost / 100})

        def time(session, artefacts, target):
            times = {name: true_ms(made.plan.quantized) for name, made in artefacts.items()}
            base = next(iter(times.values()))
            found = {
                name: Latency({}, 10, ms, ms, ms, ms, 1e3 / ms, base / ms, (0.999 * base / ms, 1.001 * base / ms), 0.01)
                for name, ms in times.items()
            }
            return Bench(found, {}, (None, None), (), next(iter(artefacts)))

        def learn(session, target):
            return LatencyModel(
                {},
                0.0,
                {name: {"fp16": 1.0, "int8": 1 - gain + believed} for name in layers},
                {},
                dict.fromkeys(layers, 1.0),
                float_ms=float(len(layers)),
            )

        # Scores are right but for a third of each.
        wobble = itertools.cycle((0.7, 1.0, 1.3))
        scores = {
            name: {"int8": next(wobble) * (loss.get(stage_of(name), 0.0) + 0.01) / count[stage_of(name)]}
            for name in layers
        }
        scored = Sensitivity(loss="outputs", images=4, scores=scores, method="perturb")
        monkeypatch.setattr("ultra_mq.session.stages.score_layers", lambda session: scored)
        monkeypatch.setattr("ultra_mq.session.artefacts.Artefacts.evaluate", evaluate)
        monkeypatch.setattr("ultra_mq.search.verify.time_artefacts", time)
        monkeypatch.setattr("ultra_mq.search.verify.learn_latency", learn)
        return session, search(session, session.recipe.variants[0])

    return hunt


def test_the_stages_that_lose_stay_in_float(run):
    """The first stages lose all; the fastest plan that holds has them, and nothing else, in float."""
    _, found = run({"model.0": 2.0, "model.1": 1.0})
    assert found.met
    assert {stage_of(layer) for layer in found.chosen.plan.quantized}.isdisjoint({"model.0", "model.1"})
    assert found.chosen.name == "float to model.1"
    assert found.chosen.speedup == pytest.approx(81 / (81 - 0.5 * 79))


def test_uniform_where_it_holds(run):
    _, found = run({"model.0": 0.5})
    assert found.chosen.name == "int8"


def test_no_more_builds_than_allowed(run):
    _, found = run({f"model.{stage}": 0.4 for stage in range(24)}, latency={"builds": 3})
    assert len([step for step in found.steps if step.name not in ("float", "int8")]) <= 3


def test_a_plan_that_is_not_surely_faster_than_float_is_not_taken(run):
    _, found = run({"model.0": 2.0}, border=45.0)
    assert not found.chosen.plan.quantized
    assert found.met
    (why,) = [line for line in found.findings if "is the float model" in line]
    nearest = min((s for s in found.steps if s.plan.quantized and s.speedup_interval[0] > 1), key=lambda s: s.drop)
    assert f"of those that are faster, '{nearest.name}' (" in why
    assert f"it loses {nearest.drop:.2f} points" in why


def test_where_nothing_is_faster_there_is_nothing_to_gain(run):
    _, found = run({"model.0": 0.5}, gain=-0.1)
    assert not found.chosen.plan.quantized
    assert any("nothing to gain from quantizing" in line for line in found.findings)


def test_predictions_are_made_before_the_measurement(run):
    _, found = run({"model.0": 2.0, "model.1": 1.0}, believed=0.1)
    predicted, measured = found.predictions["float to model.1"]
    assert predicted == pytest.approx(81 - 0.4 * 79)
    assert measured == pytest.approx(81 - 0.5 * 79)


def test_a_loss_has_an_interval_and_a_verdict(run):
    _, found = run({"model.0": 2.0, "model.1": 1.0})
    assert found.verdict in ("holds", "open")
    assert found.chosen.loss.points == pytest.approx(found.chosen.drop)
    assert found.chosen.loss.low <= found.chosen.loss.points <= found.chosen.loss.high
    assert f"on {found.chosen.loss.images} images" in " ".join(found.findings)


@pytest.mark.parametrize("cost", ["latency", "weights"])
def test_a_class_may_lose_only_so_much(run, monkeypatch, cost):
    """The mean holds everywhere; one class loses five times as much of what the first two stages lose."""
    real = verify.bootstrap_classes

    def classed(*args):
        loss, _ = real(*args)
        lost = 5 * loss.points
        return loss, (
            ClassLoss("dog", 50, 0.9, 0.9 - lost / 100, Drop(lost, lost - 0.5, lost + 0.5, 50, 0.25)),
            ClassLoss("rare", 3, 0.9, 0.0, Drop(90.0, 90.0, 90.0, 3, 0.0)),  # in too few images to count
        )

    monkeypatch.setattr("ultra_mq.search.verify.bootstrap_classes", classed)
    losses = {"model.0": 1.0, "model.1": 0.4, "model.2": 0.1}
    _, free = run(losses, max_drop=2.0, cost_model=cost)
    _, bound = run(losses, max_drop=2.0, variant={"max_drop_per_class": 1.0}, cost_model=cost)
    assert free.chosen.name == "int8" if cost == "latency" else len(free.chosen.plan.quantized) == 81
    assert {stage_of(layer) for layer in bound.chosen.plan.quantized}.isdisjoint({"model.0", "model.1"})
    assert bound.met
    assert bound.chosen.broken_classes == ()
    broken = [step for step in bound.steps if step.broken_classes]
    assert broken
    assert {one.name for step in broken for one in step.broken_classes} == {"dog"}


def test_a_budget_of_a_class_alone_is_one_of_the_mean_too():
    (variant,) = make_recipe({"variants": [{"name": "a", "max_drop_per_class": 3}]}).variants
    assert variant.max_drop == 3
    (variant,) = make_recipe({"variants": [{"name": "a", "max_drop_per_class": 3, "max_drop": 1}]}).variants
    assert variant.max_drop == 1


def test_a_coin_toss_is_called_one():
    said = describe_loss(Drop(0.28, -0.7, 1.2, 114, 0.5), 0.3)
    assert "whether it holds 0.3 points cannot be told, 52 % sure that it does" in said
    assert "images would be needed to be 95 % sure" in said
    assert "it holds 0.3 points, 98 % sure" in describe_loss(Drop(-0.7, -1.7, 0.3, 114, 0.5), 0.3)
    assert "it fails 0.3 points, 98 % sure" in describe_loss(Drop(1.3, 0.3, 2.3, 114, 0.5), 0.3)


def test_what_a_user_wants_to_be_sure_of(run, monkeypatch):
    """A plan whose estimate holds, but not surely, is passed over."""
    losses = {"model.0": 2.0, "model.1": 0.9}
    real = verify.bootstrap_classes

    def unsure(*args):
        loss, classes = real(*args)
        return dataclasses.replace(loss, deviation=0.5), classes

    monkeypatch.setattr("ultra_mq.search.verify.bootstrap_classes", unsure)
    _, estimate = run(losses)
    _, sure = run(losses, variant={"confidence": 0.95})
    assert estimate.chosen.name == "float to model.0"
    assert sure.chosen.name == "float to model.1"
    assert sure.verdict == "holds"


def test_a_solvers_plan_that_changed_has_a_name_of_its_own(run):
    """Its figures must not be mixed with those of the plan before."""
    _, found = run({f"model.{stage}": 0.3 for stage in range(24)}, believed=0.2, border=0.5)
    names = [step.name for step in found.steps]
    assert len(set(names)) == len(names) == len({frozenset(step.plan.quantized) for step in found.steps})


def test_probes_that_were_timed_cost_no_build():
    from ultra_mq.search.race import _key

    known = Timed("float to model.1", {"a": "int8"}, 1.0)
    assert _key(known.choice) == _key({"a": "int8"})


def test_agreement_is_counted_on_further_images_too(weights, shapes, tmp_path):
    """Whose labels nobody needs; the evaluation images stay what they were for the metric of the labels."""
    shutil.copytree(shapes.parent / "images" / "train", tmp_path / "more")
    document = {
        "model": str(weights), "data": str(shapes), "imgsz": 160, "runtime": "onnxruntime",
        "calibration": {"images": 8, "bias_correction": 0}, "sensitivity": {"images": 4, "method": "gradient"},
        "agreement_data": str(tmp_path / "more"),
        "variants": [{"name": "found", "max_drop": 50.0, "metric": "agreement"}],
    }  # fmt: skip
    session = open_session(make_recipe(document))
    found = search(session, session.recipe.variants[0])
    more = len(list((tmp_path / "more").iterdir()))
    assert found.chosen.loss.images == 12 + more
    assert judging_session(session, "map") is session
    with pytest.raises(DataError, match="not found"):
        open_session(make_recipe(document | {"agreement_data": "nowhere"})).judged  # noqa: B018
