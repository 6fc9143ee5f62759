# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses

import numpy as np
import pytest

from ultra_mq.measure.accuracy import Accuracy
from ultra_mq.measure.bench import Latency
from ultra_mq.measure.predictions import Detections
from ultra_mq.plan.precision_plan import uniform_plan
from ultra_mq.report.recommendation import find_front, find_knee, recommend
from ultra_mq.report.results import Report, VariantResult
from ultra_mq.session.recipe import make_recipe

EMPTY = Detections((), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), ("a.jpg",))


def test_front():
    points = {"a": (1.0, 5.0), "b": (2.0, 3.0), "worse than b": (2.5, 3.0), "c": (3.0, 1.0), "worse than c": (4.0, 2.0)}
    assert find_front(points) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([(1, 10), (2, 2), (3, 1.5), (10, 0)], 1),
        ([(1, 10), (5, 9), (6, 1), (10, 0)], 2),
        ([(1, 3)], 0),
        ([(1, 3), (1, 3)], 0),
    ],
)
def test_knee(points, knee):
    assert find_knee(points) == knee


@pytest.fixture
def report(model, tmp_path):
    """FP32 of 40 points in 10 ms, INT8 of 38 in 5, mixed of 39.8 in 6."""

    def make(**settings):
        def result(name, points, ms, plan):
            latency = Latency({"device": "CPU of mine"}, 9, ms, ms, ms, ms, 1e3 / ms, 10 / ms, (1.0, 1.0), 0.0)
            accuracy = Accuracy("detect", {"metrics/mAP50-95(B)": points / 100}, 1, None, 0.9, None, EMPTY)
            return VariantResult(name, f"{name}/{name}.onnx", None, 1, accuracy, plan=plan, latency=latency)

        variants = [{"name": "int8", "precision": "int8"}, {"name": "mixed", "bits": 9}]
        recipe = make_recipe({"model": "my model.pt", "runtime": "openvino", "variants": variants, **settings})
        plan = uniform_plan(model, "int8")
        results = (result("fp32", 40, 10, None), result("int8", 38, 5, plan), result("mixed", 39.8, 6, plan))
        return Report(tmp_path, recipe, results, versions={"ultra-mq": "9.9"})

    return make


@pytest.mark.parametrize(
    ("settings", "pick"),
    [
        ({}, "int8"),
        ({"criteria": {"max_drop": 0.5}}, "mixed"),
        ({"criteria": {"max_drop": 0.1}}, "fp32"),
        ({"criteria": {"max_drop": 0.1, "max_latency_ms": 8}}, None),
        ({"criteria": {"min_images_per_second": 190}}, "int8"),
        ({"criteria": {"device": "H200"}}, None),
        ({"criteria": {"device": "of mine", "max_drop": 0.5}}, "mixed"),
        ({"pick": "knee"}, "mixed"),
    ],
)
def test_what_is_recommended(report, settings, pick):
    found = recommend(report(**settings))
    assert found.pick == pick
    assert found.unit == "ms"
    assert [candidate.name for candidate in found.candidates] == ["int8", "mixed", "fp32"]
    assert all(candidate.on_front for candidate in found.candidates)


def test_what_is_missed_is_said(report):
    found = recommend(report(criteria={"max_drop": 0.1, "max_latency_ms": 8}))
    assert [candidate.misses for candidate in found.candidates] == [
        ("loses 2.00 points",), ("loses 0.20 points",), ("takes 10 ms",),
    ]  # fmt: skip
    assert "No model meets the criteria; the nearest is" in found.why
    assert found.commands == ()


def test_commands_rebuild_the_pick_with_what_is_not_default(report):
    found = recommend(report(criteria={"max_drop": 0.5}, imgsz=320, calibration={"images": 8}, seed=3))
    assert found.commands == (
        "pip install 'ultra-mq==9.9'",
        "ultra-mq apply mixed/plan.yaml 'my model.pt' data=auto imgsz=320 seed=3 runtime=openvino calibration.images=8",
    )


def test_bits_where_nothing_was_timed_that_counts(report):
    made = report(criteria={"max_drop": 0.5})
    plain = dataclasses.replace(made, recipe=made.recipe.model_copy(update={"runtime": "auto"}))
    found = recommend(plain)
    assert found.unit == "bits"
    assert [candidate.name for candidate in found.candidates] == ["int8", "mixed"]
