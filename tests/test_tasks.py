# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every task of every family: quantized, exported, built by TensorRT-RTX, and the same in torch and ONNX."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ultralytics import YOLO

from ultra_mq.graph.audit import audit_graph
from ultra_mq.graph.export import export_onnx
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.graph.onnx_file import read_metadata
from ultra_mq.plan.gradient import measure_sensitivity
from ultra_mq.plan.precision_plan import uniform_plan
from ultra_mq.prepare.model import prepare_model
from ultra_mq.quantization.apply import apply_formats
from ultra_mq.quantization.ranges import calibrate
from ultra_mq.runtimes.engine import BuildSettings, find_runtime
from ultra_mq.runtimes.tensorrt_builder import build_engine

FAMILIES = ("yolov8n", "yolo11n", "yolo12n", "yolo26n")
TASKS = ("", "-seg", "-pose", "-obb", "-cls")
IMGSZ = 64

HEADS = {
    "": {"cv2", "cv3", "dfl"},
    "-seg": {"cv2", "cv3", "cv4", "dfl"},
    "-pose": {"cv2", "cv3", "cv4", "cv4_kpts", "dfl"},
    "-obb": {"cv2", "cv3", "cv4", "dfl"},
    "-cls": {"linear"},
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


def make_model(name):
    """A random network whose batch norms know its statistics: without them the signal dies on its way."""
    torch.manual_seed(0)
    yolo = YOLO(name)
    module = yolo.model.train()
    for child in module.modules():
        if isinstance(child, torch.nn.BatchNorm2d):
            child.momentum = None
    with torch.no_grad():
        for _ in range(2):
            module(torch.rand(4, 3, IMGSZ, IMGSZ))
    return prepare_model(yolo)


def first_tensor(value):
    return value if isinstance(value, torch.Tensor) else first_tensor(value[0])


def run(path, image):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": image.numpy()})[0]


def closest_parity(exact, module, path):
    """Distance of torch and ONNX in units of the quantization error, on the image where they are closest.

    In a random network a single value on a rounding border that falls to the other side grows to the size of the
    quantization error, and most images have none. A quantizer too many or too few spoils every image.
    """
    ratios = []
    for seed in range(8):
        image = torch.rand(1, 3, IMGSZ, IMGSZ, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            fake, reference = (first_tensor(network(image)).numpy() for network in (module, exact))
        ratios.append(np.abs(run(path, image) - fake).mean() / np.abs(fake - reference).mean())
        if ratios[-1] < 1e-3:
            break
    return min(ratios)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_task(family, task, needs_rtx, tmp_path):
    model = make_model(f"{family}{task}.yaml")
    assert {layer.name.split(".")[2] for layer in model.kept} <= HEADS[task]
    assert {layer.name.rpartition(".")[2] for layer in model.quantizable} <= {"conv", "0", "1"}
    batches = Noise()
    calibration = calibrate(model, batches)
    plan = uniform_plan(model, "int8")
    module = apply_formats(model, plan.quantized, calibration)
    graph = export_onnx(module, tmp_path / "int8.onnx", IMGSZ)
    loaded = onnx.load(graph.path)
    assert quantized_layers(loaded) == set(plan.quantized)
    assert audit_graph(loaded, plan.quantized).findings == ()

    assert closest_parity(model.module, module, graph.path) < 1e-3

    settings = BuildSettings(target="rtx")
    runtime = find_runtime(settings)
    engine = build_engine(graph.path, tmp_path / "int8.engine", read_metadata(loaded), settings, runtime)
    executed = {name: kind for name, kind in engine.layer_types.items() if name in plan.quantized}
    assert set(executed) == set(plan.quantized)
    assert set(executed.values()) == {"Int8"}


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
