# SPDX-License-Identifier: AGPL-3.0-or-later
import numpy as np
import pytest
from ultralytics import YOLO

import ultra_mq
from ultra_mq.core.errors import BackendError, ModelError, RecipeError


@pytest.fixture
def settings(shapes, tmp_path):
    return {
        "data": str(shapes), "imgsz": 96, "bench": {"rounds": 0}, "calibration": {"images": 4, "bias_correction": 0},
        "sensitivity": {"images": 2}, "evaluation": {"parity": False, "pictures": 0}, "project": str(tmp_path),
    }  # fmt: skip


def test_onnx_runs_in_ultralytics(small_weights, settings):
    path = ultra_mq.export(small_weights, bits=9, engine={"target": "none"}, **settings)
    assert path.endswith("small-mixed-9bit.onnx")
    assert YOLO(path, task="detect").predict(np.zeros((96, 96, 3), np.uint8), imgsz=96, verbose=False)


def test_a_yolo_knows_its_checkpoint(small_weights, settings):
    path = ultra_mq.export(YOLO(small_weights), format="onnx", bits=8, engine={"target": "none"}, **settings)
    assert path.endswith("small-int8.onnx")


def test_an_engine_on_the_stand_in(stand_in, small_weights, settings):
    path = ultra_mq.export(small_weights, format="engine", bits=8, **settings)
    assert path.endswith("small-int8.engine")


def test_what_cannot_be_exported(small_weights, settings, monkeypatch, stand_in):
    with pytest.raises(RecipeError, match=r"Use one of onnx, engine; YOLO\.export has others"):
        ultra_mq.export(small_weights, format="coreml")
    with pytest.raises(ModelError, match="which checkpoint"):
        ultra_mq.export(YOLO("yolo11n.yaml"))
    stand_in("version:fail")
    monkeypatch.setenv("ULTRA_MQ_TRT_PYTHON", "/nowhere/python")
    with pytest.raises(BackendError, match="/nowhere/python"):
        ultra_mq.export(small_weights, format="engine", bits=8, **settings)
