# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest
import torch
from ultralytics import RTDETR, YOLO, YOLOE, YOLOWorld

from ultra_mq.core.errors import ModelError
from ultra_mq.prepare.model import load_model, prepare_model


def test_layers_of_yolo11n(model):
    assert len(model.quantizable) == 81
    assert [layer.name for layer in model.kept] == [
        *(f"model.23.{branch}.{level}.2" for branch in ("cv2", "cv3") for level in range(3)),
        "model.23.dfl.conv",
    ]
    assert model.quantizable[0].name == "model.0.conv"
    assert model.quantizable[0].numel == 16 * 3 * 3 * 3
    assert model.stride == 32
    assert model.task == "detect"


def test_prepared_model_can_be_differentiated(model):
    assert not any(getattr(child, "inplace", False) for child in model.module.modules())
    assert not any(isinstance(child, torch.nn.BatchNorm2d) for child in model.module.modules())
    output = model.module(torch.rand(1, 3, 64, 64))[1]["scores"].sum()
    (gradient,) = torch.autograd.grad(output, model.module.model[0].conv.weight)
    assert gradient.abs().sum() > 0
    model.module.model[-1].shape = None


def test_the_input_model_is_untouched(weights):
    yolo = YOLO(weights)
    before = {name: value.clone() for name, value in yolo.model.state_dict().items()}
    prepare_model(yolo)
    assert before.keys() == yolo.model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in yolo.model.state_dict().items())


def test_fingerprint_follows_the_weights(weights, model):
    assert load_model(weights).fingerprint == model.fingerprint
    yolo = YOLO(weights)
    with torch.no_grad():
        yolo.model.model[0].conv.weight[0, 0, 0, 0] += 1
    assert prepare_model(yolo).fingerprint != model.fingerprint


def test_missing_weights():
    with pytest.raises(ModelError, match=r"'nowhere\.pt' not found"):
        load_model("nowhere.pt")


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ModelError, match="could not be read as a YOLO checkpoint"):
        load_model(tmp_path / "text.pt")


def test_a_checkpoint_that_is_no_yolo(tmp_path):
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="could not be read as a YOLO checkpoint"):
        load_model(tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["model.onnx", "model.engine", "model.yaml"])
def test_other_formats_are_refused(name):
    with pytest.raises(ModelError, match=r"\.pt"):
        load_model(name)


def test_an_unknown_task_is_refused():
    yolo = YOLO("yolo11n-cls.yaml")
    yolo.model.task = "depth"
    with pytest.raises(ModelError, match="depth model; supported: detect"):
        prepare_model(yolo)


@pytest.mark.parametrize(("kind", "name", "head"), [
    (RTDETR, "rtdetr-resnet50.yaml", "RTDETRDecoder"), (YOLOWorld, "yolov8s-worldv2.yaml", "WorldDetect"),
    (YOLOE, "yoloe-11s.yaml", "YOLOEDetect"),
])  # fmt: skip
def test_heads_that_cannot_be_compared_are_refused_by_what_they_are(kind, name, head):
    with pytest.raises(ModelError, match=f"ends in a {head}, whose outputs .* ultra-mq ptq"):
        prepare_model(kind(name).model)


def test_a_quantized_model_is_refused(quantized):
    with pytest.raises(ModelError, match="quantized already"):
        prepare_model(quantized)


def test_something_else_is_refused():
    with pytest.raises(ModelError, match="Expected an Ultralytics YOLO model, got Linear"):
        prepare_model(torch.nn.Linear(1, 1))
