# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every task of every family through ``autoquant``: scored, planned, exported, proven, built by TensorRT-RTX."""

import json

import onnx
import pytest
import torch
import yaml
from click.testing import CliRunner
from shapes import NAMES, POSE, make_dataset
from ultralytics import YOLO
from ultralytics.utils import ROOT

from ultra_mq.cli.run_commands import main
from ultra_mq.graph.audit import audit_graph
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.graph.onnx_ptq import hot_spots
from ultra_mq.measure.tasks import TASK_METRICS
from ultra_mq.plan.gradient import measure_sensitivity
from ultra_mq.plan.perturb import measure_perturbation
from ultra_mq.plan.precision_plan import load_plan
from ultra_mq.prepare.model import load_model, prepare_model
from ultra_mq.prepare.names import layer_of
from ultra_mq.quantization.ranges import calibrate

FAMILIES = ("yolov8n", "yolo11n", "yolo12n", "yolo26n")
TASKS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
IMGSZ = 64

HEADS = {
    "detect": {"cv2", "cv3", "dfl"},
    "segment": {"cv2", "cv3", "cv4", "dfl"},
    "pose": {"cv2", "cv3", "cv4", "cv4_kpts", "dfl"},
    "obb": {"cv2", "cv3", "cv4", "dfl"},
    "classify": {"linear"},
}
"""Branches of each head whose last layer stays in float."""


class Noise:
    """Two noise images as a loader: enough to give every layer a range and a gradient."""

    indices = (0, 1)

    def __init__(self):
        self.batch = {"img": torch.rand(2, 3, IMGSZ, IMGSZ, generator=torch.Generator().manual_seed(0))}

    def __len__(self):
        return 1

    def __iter__(self):
        return iter([self.batch])


def settle(yolo):
    """Let the batch norms of a random network know its statistics: without them the signal dies on its way."""
    module = yolo.model.train()
    for child in module.modules():
        if isinstance(child, torch.nn.BatchNorm2d):
            child.momentum = None
    with torch.no_grad():
        for _ in range(2):
            module(torch.rand(4, 3, IMGSZ, IMGSZ))
    return yolo


def make_model(name):
    torch.manual_seed(0)
    return prepare_model(settle(YOLO(name)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures of shapes for a task; made once."""
    made = {}

    def get(task):
        if task not in made:
            made[task] = make_dataset(tmp_path_factory.mktemp(task), 6, 6, task)
        return made[task]

    return get


def make_weights(family, task, folder, weights):
    """The demo's checkpoint where there is one of the family, a random network of five classes otherwise."""
    suffix = TASKS[task]
    if family == "yolo11n":
        return weights.with_name(f"shapes-yolo11n{suffix}.pt")
    number = family.removeprefix("yolo").removeprefix("v").removesuffix("n")
    folder_of = {"8": "v8"}.get(number, number)
    source = ROOT / "cfg" / "models" / folder_of / f"{family.removesuffix('n')}{suffix}.yaml"
    config = yaml.safe_load(source.read_text()) | {"nc": len(NAMES)}
    config |= {"kpt_shape": POSE["kpt_shape"]} if task == "pose" else {}
    path = folder / f"{family}{suffix}.yaml"
    path.write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    yolo = settle(YOLO(path, task=task))
    yolo.model.names = dict(enumerate(NAMES))
    yolo.save(path.with_suffix(".pt"))
    return path.with_suffix(".pt")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_task(family, task, needs_rtx, data, weights, tmp_path):
    path = make_weights(family, task, tmp_path, weights)
    model = load_model(path)
    assert {layer.name.split(".")[2] for layer in model.kept} <= HEADS[task]
    assert {layer.name.rpartition(".")[2] for layer in model.quantizable} <= {"conv", "0", "1"}
    settings = [
        f"data={data(task)}", f"imgsz={IMGSZ}", "calibration.images=2", "calibration.bias_correction=2",
        "sensitivity.images=2", "sensitivity.method=gradient", "bench.rounds=0", "engine.target=rtx",
        f"project={tmp_path}", "name=run",
    ]  # fmt: skip
    if family != "yolo11n":  # what a random network predicts is chaos on six images: 3.9 points where no layer parts
        settings.append("evaluation.max_parity_gap=0.05")
    done = CliRunner().invoke(main, ["autoquant", "--bits", "8", str(path), *settings])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "run"
    results = json.loads((folder / "results.json").read_text())
    float_model, int8 = results["variants"]
    assert float_model["accuracy"]["task"] == task
    assert TASK_METRICS[task].main in float_model["accuracy"]["metrics"]
    assert int8["accuracy"]["agreement"] is not None
    assert TASK_METRICS[task].title in (folder / "report.md").read_text()

    plan = load_plan(folder / "plan.yaml")
    graph = onnx.load(folder / int8["onnx"])
    assert quantized_layers(graph) == set(plan.quantized)
    assert audit_graph(graph, plan.quantized).findings == ()
    # The same model in torch and as ONNX, layer by layer and block by block.
    assert int8["parity"]["holds"]
    assert int8["parity"]["compared"] >= len(model.quantizable)

    # A random network may have values beyond FP16, which AutoCast leaves in FP32; a trained one has none.
    beyond = set(map(layer_of, hot_spots(onnx.load(folder / int8["onnx_fp16"])))) if family != "yolo11n" else set()
    assert {layer for layer, _, _ in int8["engine_mismatches"]} <= beyond
    assert int8["engine_error"] is None
    if family == "yolo11n":
        assert int8["accuracy"]["agreement"] > 0.5


@pytest.mark.parametrize("name", ["yolo11n-seg.yaml", "yolo26n-pose.yaml", "yolo11n-cls.yaml"])
def test_layers_of_every_kind_of_output_have_a_score(name):
    model = make_model(name)
    batches = Noise()
    sensitivity = measure_sensitivity(model, calibrate(model, batches), batches, "outputs")
    assert sensitivity.scores.keys() == {layer.name for layer in model.quantizable}
    # A branch that the loss did not see would have zeros all along.
    for branch in ("cv4", "proto", "conv"):
        scores = [found["int8"] for layer, found in sensitivity.scores.items() if f".{branch}" in layer]
        assert not scores or max(scores) > 0


@pytest.mark.parametrize("name", ["yolo11n-seg.yaml", "yolo26n-pose.yaml", "yolo11n-obb.yaml", "yolo11n-cls.yaml"])
def test_layers_of_every_kind_of_output_hurt_by_themselves(name):
    """Prototypes of masks had no part in the score: their layers would have been quantized for free."""
    model = make_model(name)
    batches = Noise()
    scores = measure_perturbation(model, calibrate(model, batches), batches).scores
    for branch in (".proto.", ".cv4.", ".cv4_kpts."):
        found = [by_format["int8"] for layer, by_format in scores.items() if branch in layer]
        assert not found or max(found) > 0
