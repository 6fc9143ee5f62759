# SPDX-License-Identifier: AGPL-3.0-or-later
"""Engines that run, on the stand-in of tests/fake."""

import numpy as np
import pytest

from ultra_mq.core.errors import BackendError
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.runtimes.backend import open_file
from ultra_mq.runtimes.engine import BuildSettings, find_runtime
from ultra_mq.runtimes.onnxruntime import OnnxRuntime
from ultra_mq.runtimes.tensorrt import TensorRt
from ultra_mq.runtimes.tensorrt_builder import build_engine

RTX = BuildSettings(target="rtx")


@pytest.fixture
def image(batches):
    return next(iter(batches))["img"][:1].numpy()


def test_shared_memory_changes_nothing(engine, qdq, image):
    with TensorRt(engine.path) as backend:
        (found,) = backend.infer(image)
        again = backend.infer(1 - image)[0]
        assert backend.batch == 1
    (expected,) = OnnxRuntime(qdq.path).infer(image)
    assert np.array_equal(found, expected)
    assert not np.array_equal(again, expected)


def test_the_validator_scores_an_engine_as_its_onnx(engine, qdq, data):
    with TensorRt(engine.path) as backend:
        found = evaluate(backend, data, label="engine")
    expected = evaluate(OnnxRuntime(qdq.path), data, label="onnx")
    assert found.main == expected.main > 0.3
    assert np.array_equal(found.predictions.boxes, expected.predictions.boxes)


def test_timing(engine):
    with TensorRt(engine.path, warmup_ms=1) as backend:
        assert backend.describe()["cuda_graph"] == "not tried"
        assert len(backend.time(12)) == 12
        assert backend.describe()["cuda_graph"] == "not captured"
        assert len(backend.wall_ms) == 10


def test_a_captured_graph_is_replayed(engine, qdq, image, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_GRAPH", "1")
    with TensorRt(engine.path, warmup_ms=1) as backend:
        assert all(sample > 0.5 for sample in backend.time(5)), "a replay runs the network"
        assert backend.describe()["cuda_graph"] == "captured"
        assert np.array_equal(backend.infer(image)[0], OnnxRuntime(qdq.path).infer(image)[0])


def test_the_gpu_is_selected(engine, monkeypatch):
    monkeypatch.setenv("FAKE_GPUS", "2")
    with TensorRt(engine.path, device=1) as backend:
        assert backend.describe()["device"] == "Stand-in GPU 1"
        assert backend.gpu_uuid == "GPU-01010101-0101-0101-0101-010101010101"
    with pytest.raises(BackendError, match="there is no GPU 2; this process sees 2"):
        TensorRt(engine.path, device=2)


def test_a_file_that_is_no_engine(stand_in, tmp_path):
    (tmp_path / "x.engine").write_bytes(b"\0" * 100)
    with pytest.raises(BackendError, match=r"x\.engine' cannot be opened: Serialization assertion failed"):
        TensorRt(tmp_path / "x.engine")
    with pytest.raises(BackendError, match="not found"):
        TensorRt(tmp_path / "y.engine")
    with pytest.raises(BackendError, match=r"neither \.onnx nor \.engine"):
        open_file(tmp_path / "x.pt")


def test_rtx_engines_are_not_taken_for_tensorrt_engines(needs_rtx, stand_in, qdq_fp16, metadata, tmp_path):
    build_engine(qdq_fp16.path, tmp_path / "m.engine", metadata, RTX, find_runtime(RTX))
    with pytest.raises(BackendError, match="engine of TensorRT-RTX"):
        TensorRt(tmp_path / "m.engine")
