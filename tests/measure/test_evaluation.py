# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses

import numpy as np
import pytest
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from ultra_mq.core.errors import EvaluationError
from ultra_mq.measure.accuracy import check_parity, compare, load_accuracy, save_accuracy
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.runtimes.onnxruntime import OnnxRuntime


@pytest.fixture(scope="module")
def accuracy(model, data):
    return evaluate(model.module, data, label="FP32")


def test_figures_are_those_of_ultralytics(accuracy, weights, shapes, data):
    theirs = YOLO(weights).val(
        data=str(shapes), imgsz=data.imgsz, batch=4, rect=False, plots=False, workers=0, verbose=False, device="cpu"
    )
    assert accuracy.map50_95 == pytest.approx(theirs.box.map, abs=1e-6)
    assert accuracy.map50 == pytest.approx(theirs.box.map50, abs=1e-6)
    assert accuracy.images == 12
    assert accuracy.map50_95 > 0.5


def test_detections_are_in_pixels_of_the_original_image(accuracy):
    boxes = accuracy.detections.boxes[accuracy.detections.scores > 0.5]
    assert len(boxes) > 10
    assert boxes[:, 2:].max() > 20
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 320 + 1e-3
    assert len(accuracy.detections.images) == 12


def test_a_backend_gives_the_figures_of_ultralytics_own(qdq, data, shapes):
    ours = evaluate(OnnxRuntime(qdq.path), data, label="ONNX")
    theirs = YOLO(qdq.path, task="detect").val(
        data=str(shapes), imgsz=data.imgsz, plots=False, workers=0, verbose=False, device="cpu"
    )
    assert ours.map50_95 == pytest.approx(theirs.box.map, abs=0.003)


def test_the_backend_map_is_restored(qdq, data):
    from ultralytics.nn.autobackend import AutoBackend
    from ultralytics.nn.backends import ONNXBackend

    evaluate(OnnxRuntime(qdq.path), data, label="ONNX")
    assert AutoBackend._BACKEND_MAP["onnx"] is ONNXBackend


def test_torch_and_onnx_are_the_same_model(accuracy, quantized, qdq, data):
    torch_side = compare(evaluate(quantized, data, label="torch"), accuracy.detections)
    onnx_side = compare(evaluate(OnnxRuntime(qdq.path), data, label="ONNX"), accuracy.detections)
    parity = check_parity(torch_side, onnx_side, limit=0.02)
    assert parity.holds
    assert parity.gap == pytest.approx(
        max(abs(torch_side.map50_95 - onnx_side.map50_95), abs(torch_side.agreement - onnx_side.agreement))
    )
    other = dataclasses.replace(onnx_side, agreement=onnx_side.agreement - 0.1)
    assert not check_parity(torch_side, other, limit=0.02).holds


def test_parity_needs_agreement(accuracy):
    with pytest.raises(EvaluationError, match="call compare"):
        check_parity(accuracy, accuracy, 0.02)


def test_agreement_of_a_model_with_itself(accuracy):
    assert compare(accuracy, accuracy.detections).agreement == pytest.approx(1.0)


def test_round_trip(accuracy, tmp_path):
    save_accuracy(accuracy, tmp_path)
    loaded = load_accuracy(tmp_path)
    assert dataclasses.replace(loaded, detections=None) == dataclasses.replace(accuracy, detections=None)
    assert loaded.detections.file_names == accuracy.detections.file_names
    assert np.array_equal(loaded.detections.boxes, accuracy.detections.boxes)


def test_a_timed_out_nms_is_an_error(model, data, monkeypatch):
    from ultralytics.models.yolo.detect import val

    original = val.nms.non_max_suppression

    def slow(*args, **kwargs):
        LOGGER.warning("NMS time limit 2.050s exceeded")
        return original(*args, **kwargs)

    monkeypatch.setattr(val.nms, "non_max_suppression", slow)
    with pytest.raises(EvaluationError, match="ran out of time and dropped detections"):
        evaluate(model.module, data, label="slow")
