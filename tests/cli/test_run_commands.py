# SPDX-License-Identifier: AGPL-3.0-or-later
import errno
import json
import re

import pytest
import yaml
from click.testing import CliRunner

import ultra_mq
from ultra_mq.cli import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.fixture(scope="module")
def small(small_weights, shapes):
    return [
        small_weights, f"data={shapes}", "imgsz=160", "calibration.images=8", "sensitivity.images=2", "bench.rounds=0",
        "evaluation.parity=false", "engine.target=none",
    ]  # fmt: skip


def test_a_recovered_model_is_said_to_be_one(run, small, tmp_path):
    settings = ["recover.images=8", "recover.epochs=1", f"project={tmp_path}/runs"]
    code, _, err = run("autoquant", "--bits", "8", "--recover", *small, *settings)
    assert code == 0, err
    assert "was recovered: held-out loss" in (tmp_path / "runs" / "autoquant" / "report.md").read_text()


def test_autoquant_prints_a_table(run, small, tmp_path, monkeypatch):
    monkeypatch.setenv("ULTRA_MQ_CACHE", str(tmp_path / "cache"))
    code, out, err = run("autoquant", "--bits", "7.5", *small, f"project={tmp_path}/runs")
    assert code == 0, err
    assert out == ""
    assert "--bits 7.5 is below the floor of 8" in err
    assert "int8" in err
    assert "11/11" in err
    assert "Not built: TensorRT engines" in err
    assert (tmp_path / "runs" / "autoquant" / "report.md").exists()
    assert re.search(r"Calibrate \(the run takes about \d+ (s|min) more\)", err)
    assert not [line for line in err.splitlines() if "onnx_ir" in line or "Highs" in line]


def test_json_is_all_there_is_on_standard_output(run, small, tmp_path):
    code, out, err = run("autoquant", "--bits", "9", *small, f"project={tmp_path}/runs", "--json")
    assert code == 0, err
    results = json.loads(out)
    assert 8 < results["variants"][1]["plan"]["bits"] <= 9


def test_run_plan_and_apply(run, small, tmp_path):
    weights, *overrides = small
    assert run("plan", weights, "--bits", "10", *overrides, "placement=torch")[0] == 0
    document = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert 9 < document["bits"] <= 10
    code, out, err = run("apply", "plan.yaml", weights, *overrides, f"project={tmp_path}/runs", "--json")
    assert code == 0, err
    assert json.loads(out)["variants"][1]["plan"]["bits"] == document["bits"]
    assert yaml.safe_load((tmp_path / "runs" / "apply" / "recipe.yaml").read_text())["placement"] == "torch"
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"model": str(weights), "variants": [{"name": "a", "precision": "fp16"}]})
    )
    code, _, err = run("run", "r.yaml", *overrides, f"project={tmp_path}/runs", "name=fp16")
    assert code == 0, err
    assert (tmp_path / "runs" / "fp16" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["autoquant", "nowhere.pt"], "Weights 'nowhere.pt' not found"),
        (["autoquant", "{weights}", "data=nowhere.yaml"], "'nowhere.yaml' cannot be used"),
        (["autoquant", "{weights}", "data={shapes}", "imgsz=100"], "imgsz=100 is not a multiple"),
        (["autoquant", "{weights}", "data={shapes}", "imgs=160"], "did you mean 'imgsz'"),
        (["autoquant", "{weights}", "--bits", "0"], "outside (0, 16]"),
        (["autoquant", "{weights}", "--bits", "9", "--confidence", "0.9"], "there is no max_drop"),
        (["autoquant", "{weights}", "--bits", "17"], "outside (0, 16]"),
        (["autoquant", "{weights}", "--bits", "nan"], "outside (0, 16]"),
        (["autoquant", "{weights}", "--bits", "7.5", "--strict"], "below the floor"),
        (["autoquant", "{weights}", "data={shapes}", "project={tmp_path}/file/in/the/way"], "run folder"),
        (["run", "nowhere.yaml"], "Recipe 'nowhere.yaml' cannot be read"),
        (["apply", "nowhere.yaml", "{weights}"], "Plan 'nowhere.yaml' cannot be read"),
    ],
)
def test_bad_input_is_explained_and_exits_2(run, weights, shapes, tmp_path, arguments, message):
    (tmp_path / "file").write_text("in the way")
    code, out, err = run(
        *(argument.format(weights=weights, shapes=shapes, tmp_path=tmp_path) for argument in arguments)
    )
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_default_data_that_cannot_be_had_says_what_to_pass(run, weights, monkeypatch):
    monkeypatch.setattr(
        "ultralytics.data.utils.check_det_dataset", lambda *a: (_ for _ in ()).throw(FileNotFoundError("no"))
    )
    code, _, err = run("autoquant", weights)
    assert code == 2
    assert "data=path/to/data.yaml" in err


def test_debug_shows_the_traceback(run):
    code, _, err = run("autoquant", "nowhere.pt", "--debug")
    assert code == 2
    assert "ModelError" in err


def test_an_interrupted_command(run, weights, monkeypatch):
    monkeypatch.setattr("ultra_mq.jobs.pipeline.open_session", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, err = run("autoquant", weights)
    assert code == 130
    assert "the same command goes on from there" in " ".join(err.split())


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(errno.ENOSPC, "No space left on device"), 2), (RuntimeError("x"), 70)]
)
def test_other_errors(run, weights, monkeypatch, error, code):
    monkeypatch.setattr("ultra_mq.jobs.pipeline.open_session", lambda *a: (_ for _ in ()).throw(error))
    found, _, err = run("autoquant", weights)
    assert found == code
    assert "Traceback" not in err


def test_doctor(run):
    code, out, err = run("doctor")
    assert code == 0
    assert "can run here" in " ".join(err.split())
    assert err.split()[-1] == "data=coco128.yaml"  # it ends with a command that can be run
    code, out, _ = run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert checks["ultralytics"]["state"] == "ok"
    assert checks["openvino"]["state"] in ("ok", "missing")


def test_doctor_without_a_required_package(run, monkeypatch):
    import importlib

    original = importlib.import_module

    def missing(name, *arguments):
        if name == "modelopt.torch.quantization":
            raise ModuleNotFoundError("No module named 'huggingface_hub'", name="huggingface_hub")
        return original(name, *arguments)

    monkeypatch.setattr("ultra_mq.cli.doctor.importlib.import_module", missing)
    code, _, err = run("doctor")
    assert code == 1
    assert "needs 'huggingface_hub', which is not installed" in " ".join(err.split())
    assert "cannot run here. Next: pip install" in " ".join(err.split())


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert set(main.commands) == {
        "apply", "audit", "autocast", "autoquant", "bench", "build", "calib", "compare", "completion", "diff", "doctor",
        "gate", "init", "inspect", "open", "package", "pareto", "plan", "predict", "ptq", "run", "schema",
        "sensitivity", "sweep", "val",
    }  # fmt: skip
    assert all(command in out for command in main.commands)
    assert ultra_mq.__version__ in run("--version")[1]


def test_open_needs_a_report_and_a_browser(run, tmp_path, monkeypatch):
    code, _, err = run("open", tmp_path)
    assert code == 2
    assert "has no report.html" in err
    (tmp_path / "report.html").write_text("page")
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert run("open", tmp_path)[0] == 0
    assert opened == [(tmp_path / "report.html").as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    code, _, err = run("open", tmp_path)
    assert code == 2
    assert "There is no browser here" in err


def test_a_full_disk(run, weights, shapes, tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ultra_mq.core.files.Path.touch", full)
    code, _, err = run("autoquant", weights, f"data={shapes}", "imgsz=160", f"project={tmp_path}/runs")
    assert code == 2
    assert "No space left on device" in " ".join(err.split())
