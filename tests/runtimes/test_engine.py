# SPDX-License-Identifier: AGPL-3.0-or-later


import pytest

from ultra_mq.core.errors import BackendError
from ultra_mq.runtimes.engine import BuildSettings, choose_runtime, load_engine


def test_an_engine_is_described_beside_it(engine, qdq):
    loaded = load_engine(engine.path)
    assert loaded == engine
    assert (loaded.flags, loaded.device, loaded.version) == (("FP16", "INT8"), "Stand-in GPU", "8.6.0")
    assert loaded.onnx == qdq.path.name
    assert [(layer.name, layer.ms) for layer in loaded.layers] == [("/model.0/conv/Conv", 0.5)]


def test_auto_prefers_tensorrt(stand_in, needs_rtx, monkeypatch):
    assert choose_runtime("auto", lambda target: BuildSettings(target=target)).target == "tensorrt"
    missing = "/nowhere/python"
    assert choose_runtime("auto", lambda target: BuildSettings(target=target, python=missing)).target == "rtx"
    monkeypatch.setenv("ULTRA_MQ_TRT_PYTHON", missing)
    assert choose_runtime("auto", lambda target: BuildSettings(target=target)).target == "rtx"
    with pytest.raises(BackendError, match="/nowhere/python"):
        choose_runtime("tensorrt", lambda target: BuildSettings(target=target))
