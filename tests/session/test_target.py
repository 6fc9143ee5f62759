# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest

from ultra_mq.core.errors import BackendError
from ultra_mq.runtimes.engine import BuildSettings, find_runtime
from ultra_mq.session.recipe import make_recipe
from ultra_mq.session.target import find_target


def ask(target):
    return find_runtime(BuildSettings(target=target))


def test_a_fall_back_to_the_cpu_says_why(monkeypatch):
    monkeypatch.setenv("ULTRA_MQ_TRT_PYTHON", "/nowhere/python")
    said = []
    target = find_target(make_recipe({}), ask, said.append)
    assert (target.name, target.threads) == ("onnxruntime", 1)
    (reason,) = said
    assert "ONNX Runtime on the CPU, because TensorRT cannot be used: Cannot start '/nowhere/python'" in reason


def test_a_runtime_that_was_named_does_not_fall_back(monkeypatch):
    monkeypatch.setenv("ULTRA_MQ_TRT_PYTHON", "/nowhere/python")
    with pytest.raises(BackendError, match="Cannot start '/nowhere/python'"):
        find_target(make_recipe({"runtime": "tensorrt"}), ask, pytest.fail)


def test_tensorrt_is_found(stand_in):
    target = find_target(make_recipe({}), ask, pytest.fail)
    assert (target.name, target.about) == ("tensorrt", {"version": "8.6.0", "device": "Stand-in GPU"})
