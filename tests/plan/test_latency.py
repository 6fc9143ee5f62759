# SPDX-License-Identifier: AGPL-3.0-or-later
"""Latency from profiles: known answers on made-up times, and a real runtime."""

import dataclasses
import itertools

import pytest

from ultra_mq.core.kernels import KernelTime
from ultra_mq.plan.latency import LatencyModel, Probe, find_owners, fit_borders, fit_latency, owners_of
from ultra_mq.plan.solve import Choices, solve_choice
from ultra_mq.search.probing import learn_latency, probe_plans
from ultra_mq.session.recipe import make_recipe
from ultra_mq.session.session import open_session


@pytest.fixture(scope="module")
def owners(model):
    return find_owners(model.flow, [layer.name for layer in model.quantizable])


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (["/model.0/conv/Conv"], ("model.0.conv",)),
        (["model.1.conv.weight + /model.1/conv/Conv + PWN(/model.1/act/Sigmoid, /model.1/act/Mul)"], ("model.1.conv",)),
        (["/model.0/act/Mul/QuickGeluFusion/"], ("model.0.conv",)),
        (["/model.2/cat0_quantizer_2/QuantizeLinear"], ("model.2.cv2.conv",)),  # the reader decides on a join
        (["/model.9/m_1/MaxPool"], ("model.9.cv2.conv",)),
        (["/model.12/Concat"], ("model.13.cv1.conv",)),
        (
            ["/model.6/m.0/cv1/conv/Conv || /model.6/m.0/cv2/conv/Conv"],
            ("model.6.m.0.cv1.conv", "model.6.m.0.cv2.conv"),
        ),
        (["/model.23/cv3.0/cv3.0.2/Conv"], ("",)),  # kept in float: no choice changes it
        (["ReorderInput_token_6"], ("",)),
    ],
)
def test_who_owns_a_kernel(owners, nodes, expected):
    assert owners_of(KernelTime(tuple(nodes), 1.0), owners) == expected


def chain(quantize=(0.0, 0.0), dequantize=(0.0, 0.0)):
    """a -> b -> c: b alone gains nothing if its borders cost more than it saves."""
    return LatencyModel(
        runtime={},
        rest_ms=1.0,
        layers_ms={name: {"fp16": 2.0, "int8": 1.0} for name in "abc"},
        links={"a": ("b",), "b": ("c",)},
        sizes={"a": 1.0, "b": 2.0, "c": 1.0},
        quantize_ms=quantize,
        dequantize_ms=dequantize,
    )


def test_prediction_counts_layers_and_borders():
    model = chain(quantize=(0.5, 0.1), dequantize=(0.2, 0.0))
    assert model.predict({}) == 7
    assert model.predict(dict.fromkeys("abc", "int8")) == 4
    # b alone: a's tensor is quantized for it (0.5 + 0.1 x 1), its own is dequantized for c (0.2).
    assert model.predict({"b": "int8"}) == pytest.approx(6 + 0.6 + 0.2)


def test_borders_are_found_again_from_measurements():
    truth = chain(quantize=(0.4, 0.05), dequantize=(0.3, 0.0))
    choices = [dict.fromkeys(names, "int8") for r in range(4) for names in itertools.combinations("abc", r)]
    found = fit_borders(chain(), [Probe(choice, truth.predict(choice)) for choice in choices])
    for choice in choices:
        assert found.predict(choice) == pytest.approx(truth.predict(choice), abs=1e-6)
    assert [pair[1] for pair in found.observed] == [truth.predict(choice) for choice in choices]


def test_the_solver_knows_what_borders_cost():
    scores = {name: {"fp16": 0.0, "int8": score} for name, score in zip("abc", (5.0, 1.0, 5.0), strict=True)}
    sizes = {"weights": dict.fromkeys("abc", 1.0)}

    def solve(latency, limit):
        choices = Choices(scores, sizes, (("a",), ("b",), ("c",)), latency)
        found = solve_choice(choices, "latency", {"score": limit})
        return {layer for layer, option in found.items() if option == "int8"}

    assert solve(chain(), 2.0) == {"b"}
    assert solve(chain(quantize=(0.9, 0.0), dequantize=(0.9, 0.0)), 2.0) == set()
    assert solve(chain(quantize=(0.9, 0.0), dequantize=(0.9, 0.0)), 11.0) == {"a", "b", "c"}


def test_a_latency_that_cannot_be_reached_has_no_solution():
    scores = {name: {"fp16": 0.0, "int8": 1.0} for name in "abc"}
    choices = Choices(scores, {}, (("a",), ("b",), ("c",)), chain())
    assert solve_choice(choices, "score", {"latency": 3.9}) is None
    assert solve_choice(choices, "score", {"latency": 4.0}) == dict.fromkeys("abc", "int8")
    assert sorted(solve_choice(choices, "score", {"latency": 6.0}).values()) == ["fp16", "fp16", "int8"]


def test_uniform_models_are_predicted_exactly(model):
    def kernels(factor):
        return [KernelTime((f"/{layer.name.replace('.', '/')}/Conv",), factor) for layer in model.quantizable]

    everything = {layer.name: "int8" for layer in model.quantizable}
    half = dict(list(everything.items())[::2])
    probes = [Probe({}, 10.0, kernels(1.0)), Probe(everything, 6.0, kernels(0.5)), Probe(half, 9.5)]
    latency = fit_latency(model, 160, {}, probes)
    assert latency.predict({}) == pytest.approx(10)
    assert latency.predict(everything) == pytest.approx(6)
    assert latency.predict(half) == pytest.approx(9.5)  # eighty borders pay for the difference


def test_openvino_is_learnt_and_remembered(weights, shapes, calibration, monkeypatch):
    document = {
        "model": str(weights), "data": str(shapes), "imgsz": 160, "runtime": "openvino", "latency": {"probes": 2},
        "calibration": {"images": 8, "bias_correction": 0}, "bench": {"rounds": 2, "runs": 3},
    }  # fmt: skip
    session = open_session(make_recipe(document))
    target = session.target
    latency = learn_latency(session, target)
    plans = probe_plans(session)
    assert list(plans) == ["fp16", "int8", "mixture 1", "mixture 2"]
    predicted = [latency.predict(plan.quantized) for plan in plans.values()]
    measured = [pair[1] for pair in latency.observed]
    assert predicted[:2] == pytest.approx(measured[:2])
    assert all(times["int8"] > 0 and times["fp16"] > 0 for times in latency.layers_ms.values())
    monkeypatch.setattr(
        "ultra_mq.search.probing.time_artefacts", lambda *_: pytest.fail("latencies come from the cache")
    )
    assert dataclasses.asdict(learn_latency(session, target)) == dataclasses.asdict(latency)
