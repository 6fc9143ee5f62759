# SPDX-License-Identifier: AGPL-3.0-or-later
import json

import pytest

from ultra_mq.core.errors import BackendError
from ultra_mq.runtimes.engine import BuildSettings, choose_runtime, describe_path, find_runtime, load_engine
from ultra_mq.runtimes.tensorrt import TensorRt


def test_an_engine_is_described_beside_it(engine, qdq):
    loaded = load_engine(engine.path)
    assert loaded == engine
    assert (loaded.flags, loaded.device, loaded.version) == (("FP16", "INT8"), "Stand-in GPU", "8.6.0")
    assert loaded.onnx == qdq.path.name
    assert [(layer.name, layer.ms) for layer in loaded.layers] == [("/model.0/conv/Conv", 0.5)]


def test_what_a_later_version_adds_blocks_no_engine(engine):
    """Neither reading nor running an engine needs each field that its description may have."""
    file = describe_path(engine.path)
    document = json.loads(file.read_text())
    document |= {"of_tomorrow": 1, "settings": {**document["settings"], "of_tomorrow": 2}}
    file.write_text(json.dumps(document))
    assert load_engine(engine.path).layers == engine.layers
    file.write_text(json.dumps({"target": "tensorrt"}))  # as an engine of yesterday lacks what came since
    with TensorRt(engine.path) as opened:
        assert opened.batch == 1
    file.write_text("{")  # or of another program
    with TensorRt(engine.path) as opened:
        assert opened.batch == 1


def test_auto_prefers_tensorrt(stand_in, needs_rtx, monkeypatch):
    assert choose_runtime("auto", lambda target: find_runtime(BuildSettings(target=target))).target == "tensorrt"
    missing = "/nowhere/python"
    assert (
        choose_runtime("auto", lambda target: find_runtime(BuildSettings(target=target, trt_python=missing))).target
        == "rtx"
    )
    monkeypatch.setenv("ULTRA_MQ_TRT_PYTHON", missing)
    assert choose_runtime("auto", lambda target: find_runtime(BuildSettings(target=target))).target == "rtx"
    with pytest.raises(BackendError, match="/nowhere/python"):
        choose_runtime("tensorrt", lambda target: find_runtime(BuildSettings(target=target)))
