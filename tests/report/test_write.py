# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ultra_mq.measure.accuracy import Accuracy
from ultra_mq.measure.bench import Bench, Latency
from ultra_mq.measure.predictions import Detections
from ultra_mq.plan.precision_plan import uniform_plan
from ultra_mq.plan.scores import Sensitivity
from ultra_mq.report.results import Report, VariantResult
from ultra_mq.report.tables import advice, engine_row, loss_rows, milliseconds, points, result_row, verdict
from ultra_mq.report.write import write_report
from ultra_mq.runtimes.engine import Engine
from ultra_mq.runtimes.inspection import EngineLayer
from ultra_mq.session.recipe import Recipe

EMPTY = Detections((), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), ("a.jpg",))


def accuracy(main, agreement, images=114):
    metrics = {} if main is None else {"metrics/mAP50-95(B)": main, "metrics/mAP50(B)": main}
    return Accuracy("detect", metrics, images, None, agreement, None, EMPTY)


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


def make_engine(types, **changes):
    layers = tuple(
        EngineLayer(name, "CaskConvolution", kind, (f"/{name.replace('.', '/')}/Conv",), reformat=False)
        for name, kind in types.items()
    )
    copy = EngineLayer("copy", "Reformat", "Half", (), reformat=True)
    engine = Engine(
        path=Path("m.engine"), target="tensorrt", version="8.6.0", device="H200", size_bytes=6_400_000,
        build_seconds=100.0, flags=("FP16", "INT8"), onnx="m.onnx", onnx_sha256="0", settings={},
        layers=(*layers, copy),
    )  # fmt: skip
    return dataclasses.replace(engine, **changes)


def latency(p50_ms, speedup):
    interval = (speedup - 0.01, speedup + 0.01) if speedup else None
    return Latency({"cuda_graph": "captured"}, 1000, p50_ms, p50_ms, p50_ms, 2 * p50_ms, 1e3 / p50_ms, speedup,
                   interval, 0.01, 1.5, 40_000_000)  # fmt: skip


def test_an_engine_is_held_against_its_onnx_and_against_fp16(tmp_path, model, results):
    int8 = dataclasses.replace(
        results[1], engine=make_engine({"a.b": "Int8", "c.d": "Half"}), engine_accuracy=accuracy(0.4291, 0.952),
        engine_agreement=0.985, engine_latency=latency(0.68, 0.87),
    )  # fmt: skip
    row = engine_row(int8)
    assert row[:9] == (
        "int8", "TensorRT 8.6.0, H200", "42.91", "-0.10", "0.985", "0.952", "0.6800", "1.3600", "0.87x",
    )  # fmt: skip
    assert row[9:] == ("0.86 to 0.88", "1.50", "6.4", "40", "1", "1")
    fp16 = dataclasses.replace(
        int8, name="fp16", plan=uniform_plan(model, "fp16"), engine_accuracy=accuracy(0.4331, 1.0),
        engine_latency=latency(0.59, None),
    )  # fmt: skip
    rows = loss_rows(Report(tmp_path, Recipe(), (results[0], fp16, int8)))
    assert rows[0][5:] == ("0.00", "-")
    assert rows[1] == ("int8", "8.00", "81", "42.91", "42.91", "0.40", "0.87x")


def test_a_slow_engine_is_not_recommended(tmp_path, results):
    engine = make_engine({"a.b": "Int8"})
    timed = tuple(dataclasses.replace(layer, ms=0.75 if layer.reformat else 0.25) for layer in engine.layers)
    engine = dataclasses.replace(engine, layers=timed)

    def said(speedup):
        int8 = dataclasses.replace(results[1], engine=engine, engine_latency=latency(1.0, speedup))
        bench = Bench({}, {}, (None, None), (), "fp16")
        report = Report(tmp_path, Recipe(), (results[0], int8), engine_bench=bench)
        return [line for line in advice(report) if "engine of int8" in line]

    (line,) = said(0.86)
    assert "slower than fp16 (0.86x): 1 reformats between INT8 and float take 75 % of its layers' time" in line
    assert said(0.995) == said(1.14) == []


def test_an_engine_that_was_not_run_has_dashes(results):
    row = engine_row(dataclasses.replace(results[1], engine=make_engine({"a": "Int8"}, target="rtx")))
    assert row[1:9] == ("TensorRT-RTX 8.6.0, H200", *["-"] * 7)


def report_of(tmp_path, model, results, **changes):
    plan = results[1].plan
    scores = Sensitivity("outputs", 1, {layer.name: {"int8": 1.0} for layer in model.quantizable})
    searched = tuple(dataclasses.replace(layer, why="searched") for layer in plan.layers if layer.why != "kept")
    plan = dataclasses.replace(plan, layers=searched, **changes.pop("plan", {}))
    int8 = dataclasses.replace(results[1], plan=plan)
    return dataclasses.replace(Report(tmp_path, Recipe(), (results[0], int8), sensitivity=scores), **changes)


@pytest.mark.parametrize("why", ["repaired", "user"])
def test_a_report_of_a_plan_whose_first_layer_was_not_searched(tmp_path, model, results, why):
    """There was none, and a second run from the cache ended in the same IndexError."""
    report = report_of(tmp_path, model, results)
    plan = report.variants[1].plan
    for layers in ((dataclasses.replace(plan.layers[0], why=why), *plan.layers[1:]),
                   tuple(dataclasses.replace(layer, why=why) for layer in plan.layers)):  # fmt: skip
        made = dataclasses.replace(report.variants[1], plan=dataclasses.replace(plan, layers=layers))
        write_report(dataclasses.replace(report, variants=(report.variants[0], made)))
        assert (tmp_path / "sensitivity.png").exists()


def test_what_could_not_be_timed_is_said(tmp_path, model, results):
    report = report_of(tmp_path, model, results)
    failed = dataclasses.replace(report.variants[1], latency_error="OpenVINO cannot load it.")
    write_report(dataclasses.replace(report, variants=(report.variants[0], failed)))
    assert "- Not timed on the CPU: int8: OpenVINO cannot load it." in (tmp_path / "report.md").read_text()


def test_names_of_classes_and_files_are_no_markup(tmp_path, model, results):
    recipe = Recipe(model="<img src=x onerror=alert(1)>.pt", data="<b>d</b>.yaml")
    warnings = ("class '<script>alert(2)</script>' is empty",)
    write_report(report_of(tmp_path, model, results, recipe=recipe, warnings=warnings))
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page


def test_numbers():
    assert (points(0.43304), points(None), points(-1)) == ("43.30", "-", "-")
    assert (milliseconds(0.5351), milliseconds(5.351), milliseconds(44.87)) == ("0.5351", "5.35", "44.9")
