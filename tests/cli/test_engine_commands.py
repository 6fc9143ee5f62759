# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands on files, as a user runs them; engines run on the stand-in of tests/fake."""

import json
import re
import shutil

import pytest
import yaml
from click.testing import CliRunner
from ultralytics import YOLO
from ultralytics.utils import ROOT

from ultra_mq.cli import main
from ultra_mq.graph.export import export_onnx


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return invoke


@pytest.fixture
def engine(run, stand_in, qdq, tmp_path):
    code, _, err = run("build", qdq.path, "-o", "m.engine")
    assert code == 0, err
    return tmp_path / "m.engine"


def test_build_bench_inspect_and_val(run, engine, qdq, shapes):
    code, out, _ = run("val", qdq.path, engine, f"data={shapes}", "imgsz=160", "--json")
    document = json.loads(out)
    assert code == 0
    onnx, built = document["files"]
    assert onnx["main"] == built["main"] > 0.3
    assert built["agreement"] == 1
    code, out, _ = run("bench", engine, qdq.path, "--rounds", 2, "--runs", 3, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["latencies"][str(engine)]["samples"] == 6
    assert (document["reference"], document["latencies"][str(engine)]["speedup"]) == (str(engine), None)
    assert document["latencies"][str(qdq.path)]["speedup"] > 0
    code, out, _ = run("inspect", engine, "--json")
    assert json.loads(out)["layers"][0]["precision"] == "Int8"
    code, _, err = run("inspect", engine)
    assert (code, "1 layers, 500 us; 0 reformats" in err) == (0, True)


def test_tables(run, engine, qdq, shapes):
    # The image size stands in the files.
    _, _, err = run("val", qdq.path, engine, f"data={shapes}")
    assert "m.engine" in err
    assert "1.000" in err
    _, _, err = run("bench", engine, "--rounds", 2, "--runs", 3)
    assert "ratio (95 %)" in err
    assert "m.engine: CUDA graph not captured" in err


def test_the_reference_is_the_file_that_was_named(run, qdq, qdq_fp16, tmp_path, monkeypatch):
    """However its path is written, and whether or not it is among the files."""
    shutil.copy(qdq.path, tmp_path / "a.onnx")
    shutil.copy(qdq_fp16.path, tmp_path / "b.onnx")
    for files in (("a.onnx", "b.onnx"), ("a.onnx",)):
        code, out, _ = run("bench", *files, "--reference", "./b.onnx", "--rounds", 2, "--runs", 2, "--json")
        document = json.loads(out)
        assert code == 0
        assert set(document["latencies"]) == {"a.onnx", "b.onnx"}
        assert document["reference"] == "b.onnx"
        assert document["latencies"]["b.onnx"]["speedup"] is None
        assert document["latencies"]["a.onnx"]["speedup"] > 0


def test_a_gpu_that_is_not_there(run, stand_in, qdq):
    code, _, err = run("build", qdq.path, "--target", "tensorrt", "--device", "3")
    assert code == 2
    assert "there is no GPU 3; this process sees 1" in " ".join(err.split())


def test_a_repair_is_reported(run, stand_in, qdq, plan):
    path = next(match for name in plan.quantized if (match := re.fullmatch(r"(model\.\d+)\.(cv\d)\.conv", name)))
    stand_in(f"refuse=/{path[1]}/{path[2]}/conv/Conv")
    code, _, err = run("build", qdq.path, "-o", "m.engine")
    assert code == 0
    assert "Left in float:" in err
    assert "m-repaired.onnx" in err


def test_an_engine_that_dies_does_not_take_the_others_along(run, engine, stand_in, qdq, shapes):
    stand_in("crash-run")
    code, out, _ = run("val", qdq.path, engine, f"data={shapes}", "imgsz=160", "--json")
    assert code == 2
    document = json.loads(out)
    assert "signal 11 during 'infer'" in document["errors"][0]
    assert document["files"][0]["main"] > 0.3
    code, _, err = run("bench", engine, qdq.path, "--rounds", 2, "--runs", 3)
    assert code == 2
    assert "qdq.onnx" in err
    assert "Error: m.engine: The TensorRT worker was ended by signal 11" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "gone.onnx"], "'gone.onnx'"),
        (["build", "gone.onnx", "--min", "1x3x64"], "is not a shape such as 1x3x640x640"),
        (["build", "gone.onnx", "--min", "1x3x64x64"], "--min, --opt and --max belong together"),
        (["build", "QDQ", "--target", "tensorrt", "--trt-python", "/nowhere"], "Cannot start '/nowhere' for TensorRT"),
        (["bench", "gone.engine"], "Engine 'gone.engine' not found"),
        (["bench", "gone.pt"], "neither .onnx nor .engine"),
        (["val", "gone.engine", "data=DATA", "imgsz=160"], "'gone.engine' does not exist"),
        (["val", "QDQ", "dat=DATA"], "did you mean 'data'?"),
        (["inspect", "gone.engine"], "Engine 'gone.engine' not found"),
        (["ptq", "gone.pt"], "Weights 'gone.pt' not found"),
        (["ptq", "gone.onnx"], "'gone.onnx'"),
        (["ptq", "QDQ", "data=DATA", "--images", "2"], "is quantized already"),
        (["autocast", "gone.onnx"], "'gone.onnx'"),
        (["autocast", "QDQ", "--image", "gone.jpg"], "Image 'gone.jpg' cannot be read"),
    ],
)
def test_bad_input_is_explained_and_exits_2(run, qdq, shapes, tmp_path, arguments, message):
    code, _, err = run(*(a.replace("QDQ", str(qdq.path)).replace("DATA", str(shapes)) for a in arguments))
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*.engine"))


def test_ptq_reuses_its_calibration_tensor(run, model, shapes, tmp_path):
    export_onnx(model.module, tmp_path / "m.onnx", 160)
    arguments = ("ptq", "m.onnx", f"data={shapes}", "--images", 4)
    code, _, err = run(*arguments)
    assert code == 0
    assert "m-int8-max-nohead.onnx" in err
    (tensor,) = tmp_path.glob("calibration-160-*.npy")
    written = tensor.stat().st_mtime_ns
    code, out, _ = run(*arguments, "--exclude", ".*/model.0/.*", "--json")
    assert json.loads(out)["onnx"] == "m-int8-max-nohead-custom.onnx"
    assert "model.0.conv" not in json.loads(out)["quantized"]
    assert tensor.stat().st_mtime_ns == written
    code, out, _ = run("ptq", "m.onnx", "--calibration", tensor, "-o", "again.onnx", "--json")
    assert code == 0


def test_ptq_of_a_checkpoint(run, weights, shapes, tmp_path):
    code, _, err = run("ptq", weights, f"data={shapes}", "imgsz=160", "--images", 4)
    assert code == 0, err
    assert (tmp_path / "shapes-yolo11n-fp32.onnx").exists()
    assert (tmp_path / "shapes-yolo11n-int8-max-nohead.onnx").exists()


def test_a_stride_is_the_models(run, shapes, tmp_path):
    """A model with a P6 level has 64; 32 let it through to an error of shapes."""
    config = yaml.safe_load((ROOT / "cfg/models/v8/yolov8-p6.yaml").read_text())
    (tmp_path / "yolov8n-p6.yaml").write_text(yaml.safe_dump({**config, "nc": 5, "scale": "n"}))
    YOLO(tmp_path / "yolov8n-p6.yaml").save(tmp_path / "p6.pt")
    code, _, err = run("ptq", "p6.pt", f"data={shapes}", "imgsz=96")
    assert code == 2
    assert "imgsz=96 is not a multiple of the model's stride 64. Use 64 or 128" in " ".join(err.split())
    assert not list(tmp_path.glob("*.onnx"))


def test_autocast_lists_what_stays_in_fp32(run, qdq, data, tmp_path):
    code, out, _ = run("autocast", qdq.path, "--image", data.calibration.images[0], "-o", "f.onnx", "--json")
    assert code == 0
    assert "/model.23/dfl/conv/Conv" in json.loads(out)["fp32_nodes"]
