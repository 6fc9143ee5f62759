# SPDX-License-Identifier: AGPL-3.0-or-later
"""Packages as far as they can be tried without GPU: on ONNX Runtime, OpenVINO and stand-ins, parsed by Triton."""

import configparser
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from ultra_mq.cli import main
from ultra_mq.core.errors import PackageError
from ultra_mq.deploy.deployable import read_deployable
from ultra_mq.deploy.package import package
from ultra_mq.runtimes.engine import BuildSettings, find_runtime, save_engine
from ultra_mq.runtimes.tensorrt_builder import build_engine

HEADERS = Path(__file__).parent.parent / "fake" / "headers"


@pytest.fixture(scope="module")
def onnx_file(qdq):
    return qdq.path


@pytest.fixture
def engine_file(stand_in, onnx_file, tmp_path):
    from ultra_mq.graph.onnx_file import load_graph, read_metadata

    copy = tmp_path / onnx_file.name
    copy.write_bytes(onnx_file.read_bytes())
    settings = BuildSettings()
    metadata = read_metadata(load_graph(copy))
    engine = build_engine(copy, tmp_path / "best.engine", metadata, settings, find_runtime(settings))
    save_engine(engine)
    return engine.path


@pytest.fixture(scope="module")
def picture(shapes, tmp_path_factory):
    """A picture that is not square, so that the letterbox has something to do, as PNG and PPM."""
    source = sorted((Path(shapes).parent / "images" / "val").glob("*"))[2]
    image = cv2.resize(cv2.imread(str(source)), (300, 201))
    folder = tmp_path_factory.mktemp("pictures")
    for suffix in (".png", ".ppm"):
        cv2.imwrite(str(folder / f"shapes{suffix}"), image)
    return folder / "shapes.png"


@pytest.fixture(scope="module")
def expected(onnx_file, picture):
    return find(onnx_file, picture)


def find(path, picture):
    """What Ultralytics finds."""
    from ultralytics import YOLO

    result = YOLO(path, task="detect").predict(picture, imgsz=160, verbose=False)[0]
    return [
        (result.names[int(kind)], float(score), box)
        for kind, score, box in zip(result.boxes.cls, result.boxes.conf, result.boxes.xyxy.numpy(), strict=True)
    ]


def parse(text, skip=0):
    lines = [line.split()[skip:] for line in text.strip().splitlines()]
    return [(line[0], float(line[1]), np.array(line[2:], float)) for line in lines]


def assert_same(found, expected, pixels, score_gap=0.01):
    """Of nearly equal scores either may come first."""
    assert len(expected) > 1
    assert len(found) == len(expected)
    for label, wanted, place in expected:
        alike = [one for one in found if one[0] == label]
        _, score, box = min(alike, key=lambda one: np.abs(one[2] - place).max())
        assert score == pytest.approx(wanted, abs=score_gap)
        assert box == pytest.approx(place, abs=pixels)


def test_python_finds_what_ultralytics_finds(onnx_file, picture, expected, tmp_path):
    folder = package(read_deployable(onnx_file), "python", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "detect.py", picture], cwd=folder, capture_output=True, text=True, check=True
    )
    assert_same(parse(done.stdout, skip=1), expected, pixels=0.2)
    assert "onnxruntime" in (folder / "requirements.txt").read_text()


def test_python_on_an_engine_strips_the_header(engine_file, picture, expected, tmp_path):
    """The stand-in runs the graph in the engine on ONNX Runtime, and refuses anything before it."""
    folder = package(read_deployable(engine_file), "python", tmp_path / "out")
    assert (folder / "best.engine").read_bytes()[4:5] == b"{"
    done = subprocess.run(
        [sys.executable, "detect.py", picture], cwd=folder, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_same(parse(done.stdout, skip=1), expected, pixels=0.2)
    assert "tensorrt==8.6.0" in (folder / "requirements.txt").read_text()


@pytest.mark.slow
def test_cpp_finds_what_ultralytics_finds(onnx_file, unsigned, picture, tmp_path, caplog):
    from openvino.utils import get_cmake_path

    package(read_deployable(onnx_file), "cpp", tmp_path / "signed")
    assert "has signed 8-bit activations" in caplog.text
    caplog.clear()
    expected = find(unsigned, picture)
    folder = package(read_deployable(unsigned), "cpp", tmp_path / "out")
    assert "signed 8-bit" not in caplog.text
    for command in (["cmake", "-B", "build", f"-DOpenVINO_DIR={get_cmake_path()}"], ["cmake", "--build", "build"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    done = subprocess.run(
        ["build/detect", picture.with_suffix(".ppm")], cwd=folder, capture_output=True, text=True, check=True
    )
    # OpenCV interpolates in fixed point, and OpenVINO rounds otherwise than ONNX Runtime.
    found = [one for one in parse(done.stdout) if one[1] > 0.3]
    assert_same(found, [one for one in expected if one[1] > 0.3], pixels=2, score_gap=0.05)
    done = subprocess.run(["build/detect", "none.ppm"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "none.ppm" in done.stderr


def test_cpp_on_an_engine_strips_the_header(engine_file, picture, tmp_path):
    """Against declarations of our own, since TensorRT's headers come with TensorRT alone."""
    folder = package(read_deployable(engine_file), "cpp", tmp_path / "out")
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{HEADERS}", "main.cpp", "-o", "detect"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Two boxes of one object and one of another; the picture of 300 x 201 has 160 x 107 pixels in a square of 160.
    columns = [(80, 80, 40, 20, 0, 0.9, 0, 0, 0), (81, 80, 40, 20, 0, 0.8, 0, 0, 0), (30, 60, 10, 10, 0, 0, 0, 0.5, 0)]
    values = " ".join(map(str, np.array(columns, float).T.ravel()))
    header = json.dumps({"task": "detect"}).encode()
    plan = f"PLAN 9 3 {values}".encode()
    for content in (plan, len(header).to_bytes(4, "little") + header + plan):
        (folder / "plan.bin").write_bytes(content)
        done = subprocess.run(
            ["./detect", picture.with_suffix(".ppm"), "plan.bin"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        found = parse(done.stdout)
        assert [(label, score) for label, score, _ in found] == [("square", 0.9), ("star", 0.5)]
        assert found[0][2] == pytest.approx([112.5, 82.5, 187.5, 120.0], abs=1)


def test_triton_reads_the_configuration(onnx_file, tmp_path):
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    folder = package(read_deployable(onnx_file), "triton", tmp_path / "out")
    model = next((folder / "models").iterdir())
    config = text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())
    session = onnxruntime.InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert (config.name, config.platform, config.max_batch_size) == (model.name, "onnxruntime_onnx", 0)
    for side, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(one.name, list(one.dims)) for one in side] == [(one.name, one.shape) for one in real]
        assert [one.data_type for one in side] == [11]  # TYPE_FP32
    said = eval(config.parameters["metadata"].string_value)  # as Ultralytics' client does, by ast.literal_eval
    assert said["task"] == "detect"
    assert said["names"][0] == "circle"


def test_triton_gets_the_engine_itself(engine_file, tmp_path):
    folder = package(read_deployable(engine_file), "triton", tmp_path / "out")
    plan = next(folder.rglob("model.plan")).read_bytes()
    content = engine_file.read_bytes()
    assert content.endswith(plan)
    assert len(content) - len(plan) == int.from_bytes(content[:4], "little") + 4
    assert "tensorrt_plan" in next(folder.rglob("config.pbtxt")).read_text()


def test_triton_batches_what_has_a_free_batch(onnx_file, tmp_path):
    made = read_deployable(onnx_file)
    made = replace(
        made,
        batch=8,
        inputs=tuple(replace(one, shape=(-1, *one.shape[1:])) for one in made.inputs),
        outputs=tuple(replace(one, shape=(-1, *one.shape[1:])) for one in made.outputs),
    )
    text = next(package(made, "triton", tmp_path / "out").rglob("config.pbtxt")).read_text()
    assert "max_batch_size: 8" in text
    assert "dims: [3, 160, 160]" in text


def test_deepstream_configuration_and_parser(onnx_file, picture, expected, tmp_path):
    """The parser on the real output of the model, compiled against declarations of our own."""
    made = read_deployable(onnx_file)
    folder = package(made, "deepstream", tmp_path / "out")
    config = configparser.ConfigParser()
    config.read(folder / "config_infer_primary.txt")
    settings = config["property"]
    assert settings["num-detected-classes"] == "5"
    assert settings["infer-dims"] == "3;160;160"
    assert settings["network-mode"] == "1"
    assert (folder / "labels.txt").read_text().split() == list(made.labels)
    assert "--int8" in (folder / "Makefile").read_text()

    scale = 160 / 300
    small = cv2.resize(cv2.imread(str(picture)), (160, round(201 * scale)))
    square = np.full((160, 160, 3), 114, np.uint8)
    top = (160 - small.shape[0]) // 2
    square[top : top + small.shape[0]] = small
    pixels = square[None, :, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    output = session.run(None, {session.get_inputs()[0].name: pixels})[0][0]
    output.astype(np.float32).tofile(folder / "output.bin")
    (folder / "main.cpp").write_text(
        f"""
#include <cstdio>
#include "nvdsinfer_ultralytics.cpp"
int main() {{
    std::vector<float> values({output.size});
    FILE* file = std::fopen("output.bin", "rb");
    if (std::fread(values.data(), 4, values.size(), file) != values.size()) return 1;
    NvDsInferDims sizes{{2, {{{output.shape[0]}, {output.shape[1]}}}, {output.size}}};
    NvDsInferLayerInfo layer{{FLOAT, sizes, 0, "output0", values.data(), 0}};
    NvDsInferParseDetectionParams parameters{{5, std::vector<float>(5, 0.25f), {{}}}};
    std::vector<NvDsInferObjectDetectionInfo> objects;
    if (!NvDsInferParseUltralytics({{layer}}, {{160, 160, 3}}, parameters, objects)) return 2;
    for (const auto& one : objects)
        std::printf("%u %f %f %f %f %f\\n", one.classId, one.detectionConfidence, one.left, one.top, one.width,
                    one.height);
}}
"""
    )
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{HEADERS}", "main.cpp", "-o", "parse"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["./parse"], cwd=folder, capture_output=True, text=True, check=True)
    found = [[float(word) for word in line.split()] for line in done.stdout.splitlines()]
    # Nothing is suppressed yet, which nvinfer does: every object of Ultralytics' is among them.
    for label, _score, box in expected:
        wanted = np.array([box[0], box[1], box[2], box[3]]) * scale + [0, top, 0, top]
        same = [one for one in found if made.labels[int(one[0])] == label]
        corners = [[one[2], one[3], one[2] + one[4], one[3] + one[5]] for one in same]
        assert min(np.abs(np.array(corner) - wanted).max() for corner in corners) < 1.5


@pytest.mark.parametrize("said", [{"end2end": "True"}, {"args": "{'nms': True}"}])
def test_what_suppresses_overlaps_itself_is_decoded_by_rows(onnx_file, said, tmp_path):
    import onnx

    graph = onnx.load(str(onnx_file))
    assert not read_deployable(onnx_file).decoded
    for key, value in said.items():
        entry = next((one for one in graph.metadata_props if one.key == key), None) or graph.metadata_props.add(key=key)
        entry.value = value
    onnx.save(graph, str(tmp_path / "m.onnx"))
    assert read_deployable(tmp_path / "m.onnx").decoded


@pytest.mark.parametrize("target", ["deepstream", "cpp", "python"])
def test_what_does_not_fit_is_refused(onnx_file, target, tmp_path):
    made = replace(read_deployable(onnx_file), task="segment")
    with pytest.raises(PackageError, match=f"segment model, and the {target} package decodes boxes alone"):
        package(made, target, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_batch_is_refused_where_one_image_is_run(onnx_file, tmp_path):
    with pytest.raises(PackageError, match="one image of one size"):
        package(replace(read_deployable(onnx_file), batch=4), "python", tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.onnx", "does not exist"),
        (".", "is not a run folder of this version"),
        ("lone.engine", "Nothing beside"),
    ],
)
def test_messages(source, words, tmp_path, monkeypatch, onnx_file):
    monkeypatch.chdir(tmp_path)
    header = json.dumps({"task": "detect", "names": {0: "a"}, "imgsz": [160, 160], "batch": 1, "stride": 32}).encode()
    Path("lone.engine").write_bytes(len(header).to_bytes(4, "little") + header + b"plan")
    done = CliRunner().invoke(main, ["package", source, "--for", "triton"])
    assert done.exit_code == 2, done.output
    assert words in done.output
    done = CliRunner().invoke(main, ["package", str(onnx_file), "--for", "python", "-o", str(tmp_path)])
    assert done.exit_code == 2
    assert "exists already" in done.output


def test_a_run_folder_gives_its_variant(onnx_file, tmp_path):
    from ultra_mq.report.results import SCHEMA

    (tmp_path / "int8").mkdir()
    for name in ("m-fp32.onnx", "int8/m-int8.onnx"):
        (tmp_path / name).write_bytes(onnx_file.read_bytes())
    variants = [{"name": "fp32", "onnx": "m-fp32.onnx", "engine": None}]
    variants += [{"name": "int8", "onnx": "int8/m-int8.onnx", "engine": {"target": "rtx", "path": "m.rtx.engine"}}]
    (tmp_path / "results.json").write_text(json.dumps({"schema": SCHEMA, "variants": variants}))
    assert read_deployable(tmp_path).path.name == "m-int8.onnx"
    assert read_deployable(tmp_path, "fp32").path.name == "m-fp32.onnx"
    with pytest.raises(PackageError, match=r"has no variant 'fp8'\. It has fp32, int8"):
        read_deployable(tmp_path, "fp8")


def test_predict_is_ultralytics_own(onnx_file, picture, expected, tmp_path):
    command = ["predict", str(onnx_file), f"source={picture}", f"project={tmp_path}", "name=p", "--json"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    assert [one["name"] for one in found["found"]] == [label for label, _, _ in expected]
    assert (tmp_path / "p" / "shapes.jpg").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{onnx}"], "Add source=image.jpg"),
        (["{onnx}", "source=nowhere.jpg"], "nowhere.jpg"),
        (["nowhere.pt", "source=a.jpg"], "does not exist"),
        (["{onnx}", "source=a.jpg", "colour=red"], "colour"),
    ],
)
def test_predict_says_what_is_wrong(arguments, words, onnx_file):
    done = CliRunner().invoke(main, ["predict", *(word.format(onnx=onnx_file) for word in arguments)])
    assert done.exit_code == 2, done.output
    assert words in done.output.replace("\n", " ")
