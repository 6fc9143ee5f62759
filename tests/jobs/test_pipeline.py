# SPDX-License-Identifier: AGPL-3.0-or-later
import csv
import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ultra_mq.core.cache import Cache
from ultra_mq.core.errors import BackendError, DataError, ParityError, PlanError, RunFolderError
from ultra_mq.graph.lint import Fault
from ultra_mq.jobs import engine_results, pipeline
from ultra_mq.jobs.pipeline import run_recipe
from ultra_mq.measure.layer_parity import Parting
from ultra_mq.plan.precision_plan import load_plan
from ultra_mq.report.results import VariantResult
from ultra_mq.session import artefacts, stages
from ultra_mq.session.recipe import load_recipe, make_recipe

VARIANTS = [
    {"name": "fp16", "precision": "fp16"},
    {"name": "int8", "precision": "int8"},
    {"name": "mixed", "precision": "mixed", "bits": 10},
]


@pytest.fixture(scope="module")
def settings(weights, shapes):
    return {
        "model": str(weights),
        "data": str(shapes),
        "imgsz": 160,
        "calibration": {"images": 8, "bias_correction": 4},
        "sensitivity": {"images": 2},
        "bench": {"rounds": 2, "runs": 2},
    }


@pytest.fixture(scope="module")
def report(settings, tmp_path_factory):
    project = tmp_path_factory.mktemp("runs")
    return run_recipe(make_recipe({**settings, "project": str(project), "variants": VARIANTS}))


def test_every_variant_is_proven(report):
    fp32, fp16, int8, mixed = report.variants
    assert fp32.accuracy.agreement is None
    assert fp16.accuracy.agreement > 0.97
    assert 0.5 < int8.accuracy.agreement <= mixed.accuracy.agreement + 0.02
    assert (int8.plan.bits, mixed.plan.bits) == (8, pytest.approx(10, abs=0.02))
    for variant in (int8, mixed):
        assert variant.parity.holds
        assert variant.latency.samples == 4
        assert variant.engine_mismatches == []
    assert fp32.latency.speedup is None
    assert mixed.latency.speedup > 0


def test_files_of_the_run_folder(report):
    names = {str(path.relative_to(report.folder)) for path in report.folder.rglob("*") if path.is_file()}
    stem = "shapes-yolo11n"
    assert {
        "recipe.yaml", "report.md", "report.html", "results.json", "results.csv", "sensitivity.csv", "sensitivity.png",
        "accuracy.png", f"{stem}-fp32.onnx", f"fp16/{stem}-fp16-fp16.onnx", f"int8/{stem}-int8.onnx",
        f"mixed/{stem}-mixed.onnx", f"mixed/{stem}-mixed.pt", f"mixed/{stem}-mixed-fp16.onnx", "mixed/plan.yaml",
    } <= names  # fmt: skip
    assert not [name for name in names if "/." in f"/{name}"]


def test_results_are_complete(report):
    results = json.loads((report.folder / "results.json").read_text())
    assert [variant["name"] for variant in results["variants"]] == ["fp32", "fp16", "int8", "mixed"]
    assert results["variants"][3]["accuracy"]["agreement"] == report.variants[3].accuracy.agreement
    assert results["versions"]["ultralytics"]
    rows = list(csv.DictReader((report.folder / "sensitivity.csv").open()))
    assert len(rows) == 88
    scores = [float(row["score"]) for row in rows if row["score"]]
    assert len(scores) == 81
    assert scores == sorted(scores, reverse=True)
    assert {row["mixed"] for row in rows} == {"int8", "fp16", "fp16 (kept)"}


def test_the_report_reads_well(report):
    text = (report.folder / "report.md").read_text()
    for heading in ("## Results", "## Parity", "## Engines", "## Other budgets", "## Layers", "## Reproduce"):
        assert heading in text
    assert "| mixed | 10.00 |" in text or "| mixed | 9.99 |" in text
    assert "Not built: TensorRT engines" in text
    assert "None" not in text
    assert "<table>" in (report.folder / "report.html").read_text()
    assert text.startswith("# shapes-yolo11n.pt on shapes.yaml\n")


def test_the_resolved_recipe_reproduces_the_run(report, monkeypatch):
    monkeypatch.setattr(stages, "measure_perturbation", lambda *a, **k: pytest.fail("scores come from the cache"))
    monkeypatch.setattr(artefacts, "evaluate", lambda *a, **k: pytest.fail("figures come from the cache"))
    again = run_recipe(load_recipe(report.folder / "recipe.yaml"))
    assert again.folder != report.folder
    for one, two in zip(report.variants, again.variants, strict=True):
        assert one.accuracy.main == two.accuracy.main
        assert one.accuracy.agreement == two.accuracy.agreement
        assert one.plan == two.plan


def test_an_edited_plan_is_applied(report, settings, tmp_path):
    path = tmp_path / "plan.yaml"
    document = yaml.safe_load((report.folder / "mixed" / "plan.yaml").read_text())
    first = next(layer for layer in document["layers"] if layer["format"] == "int8")
    first.update(format="fp16")  # a person changes just this
    path.write_text(yaml.safe_dump(document))
    plan = load_plan(path)
    recipe = make_recipe({**settings, "project": str(tmp_path), "variants": [VARIANTS[2]], "bench": {"rounds": 0}})
    applied = run_recipe(recipe, plans={"mixed": plan})
    made = applied.variants[1].plan
    assert first["name"] not in made.quantized
    assert made.bits > plan.bits
    assert next(layer.why for layer in made.layers if layer.name == first["name"]) == "user"
    assert any("1 layers of the plan were edited" in warning for warning in applied.warnings)
    assert (applied.folder / "plan.yaml").exists()
    assert applied.variants[1].engine_mismatches == []


def test_a_plan_of_another_model_writes_nothing(report, settings, tmp_path):
    import dataclasses

    plan = dataclasses.replace(report.variants[3].plan, model_fingerprint="0")
    recipe = make_recipe({**settings, "project": str(tmp_path / "runs"), "variants": [VARIANTS[2]]})
    with pytest.raises(PlanError):
        run_recipe(recipe, plans={"mixed": plan})
    assert not (tmp_path / "runs").exists()


def test_bad_input_writes_nothing(settings, tmp_path):
    recipe = make_recipe({**settings, "imgsz": 100, "project": str(tmp_path / "runs")})
    with pytest.raises(DataError):
        run_recipe(recipe)
    assert not (tmp_path / "runs").exists()


def test_data_of_other_classes(settings, shapes, tmp_path):
    document = yaml.safe_load(Path(shapes).read_text())
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**document, "names": {index: f"c{index}" for index in range(9)}}))
    with pytest.raises(DataError, match=r"knows 5 classes and .* has 9"):
        run_recipe(make_recipe({**settings, "data": str(other)}))


def test_a_run_folder_that_cannot_be_made(settings, tmp_path):
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(RunFolderError, match="run folder"):
        run_recipe(make_recipe({**settings, "project": str(tmp_path / "runs")}))


def test_parity_failure_is_loud_and_leaves_a_report(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(artefacts, "compare_layers", lambda *_: (Parting("model.2.cv1.conv", 3.0),))
    recipe = make_recipe(
        {
            **settings,
            "project": str(tmp_path),
            "variants": [VARIANTS[1]],
            "bench": {"rounds": 0},
            "calibration": {"images": 3, "bias_correction": 0},
        }
    )
    with pytest.raises(ParityError, match=r"model\.2\.cv1\.conv is the first of 1 to give something else"):
        run_recipe(recipe)
    assert "| NO |" in (tmp_path / "autoquant" / "report.md").read_text()


def test_faults_of_the_graph_are_reported(report, settings, tmp_path, monkeypatch):
    fault = Fault("cast-after-dq", "/model.0/conv/Conv", "a Cast stands in the way")
    monkeypatch.setattr(pipeline, "lint_graph", lambda graph: [fault])
    recipe = make_recipe({**settings, "project": str(tmp_path), "variants": [VARIANTS[1]], "bench": {"rounds": 0}})
    assert run_recipe(recipe).warnings == ("int8: a Cast stands in the way.",)
    assert "- Warning: int8: a Cast stands in the way." in (tmp_path / "autoquant" / "report.md").read_text()


def test_an_interrupted_run_goes_on(settings, small_weights, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    recipe = make_recipe(
        {
            **settings,
            "model": str(small_weights),
            "project": str(tmp_path),
            "variants": [VARIANTS[1]],
            "bench": {"rounds": 0},
        }
    )

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "export_onnx", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, cache)
    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "convert_to_fp16", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, cache)
    assert (tmp_path / "cache" / "calibration").exists()
    monkeypatch.setattr(stages, "calibrate", lambda *a, **k: pytest.fail("calibration comes from the cache"))
    assert run_recipe(recipe, cache).variants[1].accuracy.agreement is not None


def test_what_was_not_built_is_said_in_one_line(report):
    assert report.not_built[-1].endswith(f"ultra-mq build {report.folder / 'mixed' / 'shapes-yolo11n-mixed.onnx'}")

    def fail(*_):
        raise BackendError("TensorRT-RTX cannot be used.")

    session = SimpleNamespace(recipe=report.recipe, engine_runtime=fail, unsigned=False)
    found = engine_results.find_engine_runtime(session)
    assert found == (None, [])  # one line for all engines, with the remedy; doctor has the reasons


def test_the_command_for_the_other_machine_can_be_pasted(settings, tmp_path):
    folder = tmp_path / "my runs"
    recipe = make_recipe({**settings, "project": str(folder), "variants": [VARIANTS[1]], "bench": {"rounds": 0}})
    report = run_recipe(recipe)
    command = report.not_built[-1].partition("on that machine: ")[2]
    assert shlex.split(command) == ["ultra-mq", "build", str(report.folder / "shapes-yolo11n-int8.onnx")]


def test_a_run_for_openvino_says_nothing_of_engines_that_cannot_be(small_weights, shapes, tmp_path):
    """Its activations are unsigned on purpose: every one was a warning, and the hint named a file TensorRT refuses."""
    pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    document = {
        "model": str(small_weights), "data": str(shapes), "imgsz": 96, "runtime": "openvino", "project": str(tmp_path),
        "calibration": {"images": 4, "bias_correction": 0}, "sensitivity": {"images": 2}, "bench": {"rounds": 0},
        "variants": [{"name": "int8", "precision": "int8"}],
    }  # fmt: skip
    report = run_recipe(make_recipe(document))
    assert not [warning for warning in report.warnings if "asymmetric" in warning]
    assert report.not_built == (
        "Engines: engines take no unsigned activations, which OpenVINO needs; run again with --runtime auto",
    )


def test_two_runs_at_once_take_two_folders(tmp_path):
    recipe = make_recipe({"project": str(tmp_path), "name": "run"})
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: pipeline.make_run_folder(recipe, "segment"), range(8)))
    assert len(set(folders)) == 8
    again = make_recipe({"project": str(tmp_path), "name": "run", "exist_ok": True})
    assert pipeline.make_run_folder(again, "detect") == pipeline.make_run_folder(again, "detect") == tmp_path / "run"


def test_a_runtime_that_fails_costs_no_report(settings, tmp_path, monkeypatch):
    """What cannot be opened or dies is said, and the rest is timed."""
    opened = []

    def open_file(path, **options):
        if "int8" in path.name:
            raise BackendError("OpenVINO cannot load it")
        opened.append(SimpleNamespace(batch=1, time=lambda runs: [1.0] * runs, describe=dict, close=lambda: None))
        opened[-1].close = lambda: opened.append("closed")
        return opened[-1]

    session = SimpleNamespace(
        recipe=make_recipe({**settings, "runtime": "openvino"}), warn=[].append, stage=lambda name: nullcontext()
    )
    monkeypatch.setattr(pipeline, "open_file", open_file)
    results = [VariantResult(name, f"{name}.onnx", None, 1, None) for name in ("fp32", "int8", "mixed")]
    fp32, int8, mixed = pipeline._time_on_cpu(session, tmp_path, results)
    assert (int8.latency, int8.latency_error) == (None, "OpenVINO cannot load it")
    assert (fp32.latency.speedup, mixed.latency.speedup) == (None, 1)
    assert opened.count("closed") == 2
