# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses

import numpy as np
import pytest
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from ultra_mq.core.errors import EvaluationError
from ultra_mq.measure.accuracy import compare, load_accuracy, save_accuracy
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.runtimes.onnxruntime import OnnxRuntime


@pytest.fixture(scope="module")
def accuracy(model, data):
    return evaluate(model.module, data, label="FP32")


def test_figures_are_those_of_ultralytics(accuracy, weights, shapes, data):
    theirs = YOLO(weights).val(
        data=str(shapes), imgsz=data.imgsz, batch=4, rect=False, plots=False, workers=0, verbose=False, device="cpu"
    )
    assert accuracy.main == pytest.approx(theirs.box.map, abs=1e-6)
    assert accuracy.second == pytest.approx(theirs.box.map50, abs=1e-6)
    assert accuracy.images == 12
    assert accuracy.main > 0.5


def test_detections_are_in_pixels_of_the_original_image(accuracy):
    boxes = accuracy.predictions.boxes[accuracy.predictions.scores > 0.5]
    assert len(boxes) > 10
    assert boxes[:, 2:].max() > 20
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 320 + 1e-3
    assert len(accuracy.predictions.images) == 12


def test_a_backend_gives_the_figures_of_ultralytics_own(qdq, data, shapes):
    ours = evaluate(OnnxRuntime(qdq.path), data, label="ONNX")
    theirs = YOLO(qdq.path, task="detect").val(
        data=str(shapes), imgsz=data.imgsz, plots=False, workers=0, verbose=False, device="cpu"
    )
    assert ours.main == pytest.approx(theirs.box.map, abs=0.003)


def test_the_backend_map_is_restored(qdq, data):
    from ultralytics.nn.autobackend import AutoBackend
    from ultralytics.nn.backends import ONNXBackend

    evaluate(OnnxRuntime(qdq.path), data, label="ONNX")
    assert AutoBackend._BACKEND_MAP["onnx"] is ONNXBackend


def test_agreement_of_a_model_with_itself(accuracy):
    assert compare(accuracy, accuracy.predictions).agreement == pytest.approx(1.0)


def test_round_trip(accuracy, tmp_path):
    save_accuracy(accuracy, tmp_path)
    loaded = load_accuracy(tmp_path)
    assert dataclasses.replace(loaded, predictions=None) == dataclasses.replace(accuracy, predictions=None)
    assert loaded.predictions.file_names == accuracy.predictions.file_names
    assert np.array_equal(loaded.predictions.boxes, accuracy.predictions.boxes)


def test_a_timed_out_nms_is_an_error(model, data, monkeypatch):
    from ultralytics.models.yolo.detect import val

    original = val.nms.non_max_suppression

    def slow(*args, **kwargs):
        LOGGER.warning("NMS time limit 2.050s exceeded")
        return original(*args, **kwargs)

    monkeypatch.setattr(val.nms, "non_max_suppression", slow)
    with pytest.raises(EvaluationError, match="ran out of time and dropped detections"):
        evaluate(model.module, data, label="slow")
