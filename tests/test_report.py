# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses

import numpy as np
import pytest

from ultra_mq.backends.tensorrt_rtx import RtxEngine
from ultra_mq.coco import Detections
from ultra_mq.evaluate import Accuracy
from ultra_mq.plan import uniform_plan
from ultra_mq.recipe import Recipe
from ultra_mq.report import Report, VariantResult, milliseconds, points, result_row, verdict

EMPTY = Detections((), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), ("a.jpg",))


def accuracy(map50_95, agreement, images=114):
    return Accuracy(map50_95, map50_95, images, None, agreement, EMPTY)


@pytest.fixture
def results(model):
    reference = VariantResult("fp32", "a.onnx", None, 10_500_000, accuracy(0.433, None))
    plan = uniform_plan(model, "int8")
    int8 = VariantResult("int8", "b.onnx", "c.onnx", 3_000_000, accuracy(0.4301, 0.9594), plan=plan)
    return reference, int8


def test_a_row(tmp_path, results):
    report = Report(tmp_path, Recipe(), results)
    row = result_row(report, results[1])
    assert row == ("int8", "8.00", "81 of 81", "43.01", "-0.29", "43.01", "0.959", "3.0", "-", "-")


def test_verdicts(tmp_path, results):
    report = Report(tmp_path, Recipe(), results)
    assert "loses 0.29 points of mAP50-95 (43.01 of 43.30), agreement with FP32 0.959" in verdict(report, results[1])
    assert "so few images" in verdict(report, results[1])
    many = dataclasses.replace(results[1], accuracy=accuracy(0.43, 0.95, images=5000))
    assert "so few images" not in verdict(report, many)
    unlabelled = dataclasses.replace(results[1], accuracy=accuracy(None, 0.95))
    assert "no labels" in verdict(report, unlabelled)


def test_engine_mismatches(model, results):
    types = {layer.name: "Int8" for layer in model.quantizable} | {layer.name: "Half" for layer in model.kept}
    types["model.23.dfl.conv"] = "Float"

    def mismatches(**changes):
        engine = RtxEngine(
            path=None, version="1", compute_capability="8.9", size_bytes=1, layer_types={**types, **changes}
        )
        return dataclasses.replace(results[1], engine=engine).engine_mismatches

    assert mismatches() == []
    assert mismatches(**{"model.0.conv": "Half"}) == [("model.0.conv", "int8", "Half")]
    del types["model.1.conv"]
    assert mismatches() == [("model.1.conv", "int8", "missing")]


def test_numbers():
    assert (points(0.43304), points(None), points(-1)) == ("43.30", "-", "-")
    assert (milliseconds(0.5351), milliseconds(44.87)) == ("0.54", "44.9")
