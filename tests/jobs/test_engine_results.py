# SPDX-License-Identifier: AGPL-3.0-or-later
"""A run that builds, proves and times engines, on the stand-in of tests/fake."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ultra_mq.core.errors import BackendError, ReportError
from ultra_mq.jobs.api import compare_recipe
from ultra_mq.jobs.pipeline import run_recipe
from ultra_mq.measure.accuracy import points_lost
from ultra_mq.plan.precision_plan import load_plan
from ultra_mq.report.gate import check_report
from ultra_mq.report.recommendation import recommend
from ultra_mq.session.recipe import make_recipe

LAYER, NODE = "model.2.cv2.conv", "/model.2/cv2/conv/Conv"


@pytest.fixture(autouse=True)
def no_engines_of_other_tests(cache_folder, tmp_path_factory, monkeypatch):
    """All that is cached but engines: each test builds its own."""
    folder = tmp_path_factory.mktemp("cache")
    for stage in cache_folder.iterdir():
        if stage.name != "engine":
            (folder / stage.name).symlink_to(stage)
    monkeypatch.setenv("ULTRA_MQ_CACHE", str(folder))


@pytest.fixture
def recipe(weights, shapes, tmp_path):
    settings = {
        "data": str(shapes),
        "imgsz": 160,
        "project": str(tmp_path),
        "calibration": {"images": 8, "bias_correction": 4},
        "evaluation": {"parity": False},
        "bench": {"rounds": 2, "runs": 2, "engine_runs": 100},
        "engine": {"target": "tensorrt"},
    }
    return compare_recipe(weights, [], settings)


@pytest.fixture
def short(recipe, small_weights):
    """Uniform INT8 alone, of a model of a dozen layers."""
    return recipe.model_copy(update={"model": str(small_weights), "variants": recipe.variants[1:2]})


def test_engines_are_proven_and_repaired(stand_in, recipe):
    stand_in(f"refuse={NODE}")
    report = run_recipe(recipe)
    fp32, fp16, int8, ptq = report.variants
    assert fp32.engine is None
    for variant in (fp16, int8, ptq):
        assert variant.engine_error is None
        assert variant.engine_accuracy.main > 0.3
        assert variant.engine_latency.samples == 200
        assert variant.engine_latency.p50_ms > 0
    # The stand-in runs the very graph it was given.
    for variant in (int8, ptq):
        assert variant.engine_agreement == 1
        assert variant.engine_accuracy.main == variant.accuracy.main
    assert fp16.engine_latency.speedup is None
    assert report.engine_bench.reference == "fp16"
    assert int8.engine_latency.speedup > 0
    assert int8.engine.repaired == ptq.engine.repaired == (LAYER,)
    assert int8.onnx == "int8/shapes-yolo11n-int8-repaired.onnx"
    saved = load_plan(report.folder / "int8" / "plan.yaml")
    assert {layer.name for layer in saved.layers if layer.why == "repaired"} == {LAYER}
    assert 8 < saved.bits < 8.1
    assert sum("TensorRT cannot build them" in warning for warning in report.warnings) == 2
    folder = report.folder
    results = json.loads((folder / "results.json").read_text())
    assert results["variants"][2]["engine"]["repaired"] == [LAYER]
    assert "predictions" not in results["variants"][2]["engine_accuracy"]
    page = (folder / "results-shapes-yolo11n-trt-shapes.md").read_text()
    assert all(f"| {variant.name} | TensorRT 8.6.0, Stand-in GPU |" in page for variant in (fp16, int8, ptq))
    assert "loss to FP16" in page
    assert (folder / "pareto.png").stat().st_size > 10_000
    assert "Left in float because the builder failed on them: model.2.cv2.conv" in (folder / "report.md").read_text()
    assert (folder / "sensitivity.csv").read_text().splitlines()[0].count("executed") == 2


def test_a_second_run_builds_nothing(stand_in, short):
    first = run_recipe(short)
    stand_in("crash-build")
    again = run_recipe(short)
    assert "Build" in first.seconds
    assert "Build" not in again.seconds
    assert again.variants[1].engine_error is None
    assert again.variants[1].engine.path.parent == again.folder
    assert again.variants[1].engine.layers == first.variants[1].engine.layers


def test_a_single_run_is_compared_with_an_fp16_engine_of_its_own(stand_in, short):
    """A lone engine had a speed-up of 1.00, so that a gate for 1.0 always passed."""
    report = run_recipe(short)
    assert report.engine_bench.reference == "fp16 (reference)"
    assert report.variants[1].engine_latency.speedup not in (None, 1)
    engine = short.engine.model_copy(update={"reference": False})
    alone = run_recipe(short.model_copy(update={"engine": engine}))
    assert alone.variants[1].engine_latency.speedup is None
    with pytest.raises(ReportError, match="has no speed-up of 'int8': it was timed alone"):
        check_report(alone.folder / "results.json", min_speedup=1.0)


def test_the_engine_is_built_and_run_on_the_recipes_gpu(stand_in, short, monkeypatch):
    monkeypatch.setenv("FAKE_GPUS", "2")
    # Torch sees no GPU here, TensorRT's process two.
    monkeypatch.setattr("ultra_mq.session.session.torch_device", lambda device: "cpu")
    report = run_recipe(short.model_copy(update={"device": "1"}))
    assert report.variants[1].engine.device == "Stand-in GPU 1"
    assert report.variants[1].engine_latency.runtime["device"] == "Stand-in GPU 1"


def test_of_several_builds_the_fastest_is_kept(stand_in, short, monkeypatch):
    """Two GPUs build side by side; each try has timing caches of its own."""
    monkeypatch.setenv("FAKE_GPUS", "2")
    engine = short.engine.model_copy(update={"tries": 3, "build_on": (0, 1)})
    report = run_recipe(short.model_copy(update={"engine": engine}))
    kept = report.variants[1].engine
    assert len(kept.tries_ms) == 3
    saved = json.loads((report.folder / f"{kept.path.name}.json").read_text())
    assert saved["tries_ms"] == list(kept.tries_ms)
    text = (report.folder / "report.md").read_text()
    spread = 100 * (max(kept.tries_ms) / min(kept.tries_ms) - 1)
    assert f"3 builds of int8 are {spread:.1f} % apart" in text
    stand_in("crash-build")
    again = run_recipe(short.model_copy(update={"engine": engine}))
    assert again.variants[1].engine.tries_ms == kept.tries_ms


def test_what_builds_cannot_tell_apart_is_said(stand_in, recipe):
    engine = recipe.engine.model_copy(update={"tries": 2})
    variants = recipe.variants[:2]
    criteria = recipe.criteria.model_copy(update={"max_drop": 50.0})
    report = run_recipe(recipe.model_copy(update={"engine": engine, "variants": variants, "criteria": criteria}))
    wide = [replace(v, engine=replace(v.engine, tries_ms=(1.0, 9.0))) if v.engine else v for v in report.variants]
    why = recommend(replace(report, variants=tuple(wide))).why
    assert "Builds of one graph are up to 800.0 % apart here" in why
    assert (
        f"on {report.reference.accuracy.images} images: it holds 50 points, 100 % sure."
        in recommend(replace(report, variants=(report.reference, wide[2], wide[2]))).why
    )


def test_losses_have_intervals(stand_in, short):
    report = run_recipe(short)
    losses = report.variants[1].losses
    assert set(losses) == {"map", "agreement"}
    for metric, loss in losses.items():
        assert loss.points == pytest.approx(
            points_lost(report.variants[1].engine_accuracy, report.reference.accuracy, metric)
        )
        assert loss.low <= loss.points <= loss.high
    saved = json.loads((report.folder / "results.json").read_text())["variants"][1]["losses"]
    assert saved["agreement"]["images"] == 12


def test_a_builder_that_crashes_leaves_everything_else(stand_in, short):
    stand_in("crash-build")
    report = run_recipe(short)
    for variant in report.variants[1:]:
        assert "signal 11 during 'build'" in variant.engine_error
        assert variant.engine is None
        assert variant.accuracy.images == 12
    text = (report.folder / "report.md").read_text()
    assert "Failed: int8: The TensorRT worker was ended by signal 11" in text
    assert not list(Path(report.folder).rglob("*.engine"))


def test_an_engine_that_dies_when_it_runs(stand_in, short, monkeypatch):
    # The inspector runs the engine too; here the engine shall die in the validator.
    monkeypatch.setattr("ultra_mq.runtimes.tensorrt_builder.read_layers", lambda *_: ())
    stand_in("crash-run")
    report = run_recipe(short)
    for variant in report.variants[1:]:
        assert "signal 11 during 'infer'" in variant.engine_error
        assert variant.engine.path.exists()
        assert variant.engine_latency is None


def test_an_engine_that_computes_something_else_is_not_recommended(stand_in, recipe, monkeypatch):
    from ultra_mq.runtimes.tensorrt import TensorRt

    honest = TensorRt.infer
    monkeypatch.setattr(TensorRt, "infer", lambda self, batch: [0.7 * output for output in honest(self, batch)])
    report = run_recipe(recipe.model_copy(update={"variants": recipe.variants[1:2]}))
    assert report.variants[1].engine_agreement < 0.9
    assert any("int8: the engine agrees with its ONNX file at" in warning for warning in report.warnings)


def test_a_target_that_is_missing_is_said_before_anything_is_written(short, tmp_path):
    engine = short.engine.model_copy(update={"trt_python": "/nowhere/python"})
    with pytest.raises(BackendError, match="Cannot start '/nowhere/python'"):
        run_recipe(short.model_copy(update={"engine": engine}))
    assert list(tmp_path.iterdir()) == []


def test_a_race_on_engines_that_two_gpus_build(stand_in, short, monkeypatch):
    """Probes, builds and the report of a search whose plans are engines."""
    monkeypatch.setenv("FAKE_GPUS", "2")
    document = short.model_dump(mode="json") | {
        "runtime": "tensorrt",
        "cost_model": "latency",
        "latency": {"probes": 2, "builds": 2},
        "sensitivity": {"images": 4},
        "variants": [{"name": "raced", "max_drop": 60.0, "metric": "agreement"}],
    }
    document["engine"] |= {"build_on": [0, 1]}
    report = run_recipe(make_recipe(document))
    raced = report.variants[1]
    assert raced.search.runtime == "tensorrt"
    assert {"float", "int8"} <= {step.name for step in raced.search.steps}
    assert raced.search.verdict in ("holds", "open")
    assert raced.engine_error is None
    caches = {path.name for path in (Path(os.environ["ULTRA_MQ_CACHE"]) / "timing").iterdir()}
    assert {"gpu-0", "gpu-1"} <= caches
    text = (report.folder / "report.md").read_text()
    assert ("without their own measurement" in text) == bool(raced.search.predictions)
    assert "points of agreement lost, 95 %" in text
