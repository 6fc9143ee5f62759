# SPDX-License-Identifier: AGPL-3.0-or-later
"""On a GPU, with whatever TensorRT is there: ``make test-gpu``; ``ULTRA_MQ_TRT_PYTHON`` names its Python.

Builds two engines of the demo model, which takes minutes on TensorRT 8.6.
"""

import os
import signal

import pytest
import torch

from ultra_mq.core.errors import BackendError
from ultra_mq.graph.export import export_onnx
from ultra_mq.measure.accuracy import compare
from ultra_mq.measure.bench import time_in_turns
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.measure.gpu import read_gpu
from ultra_mq.prepare.data import Batches
from ultra_mq.prepare.model import load_model, uniform_formats
from ultra_mq.quantization.apply import apply_formats
from ultra_mq.quantization.ranges import calibrate
from ultra_mq.runtimes.engine import BuildSettings, find_runtime
from ultra_mq.runtimes.engine_build import build
from ultra_mq.runtimes.onnxruntime import OnnxRuntime
from ultra_mq.runtimes.tensorrt import TensorRt

pytestmark = pytest.mark.gpu

IMGSZ = 160
LAST = max(torch.cuda.device_count() - 1, 0)
"""The GPU that everything runs on: not the first one, where there are several."""


@pytest.fixture(scope="module")
def runtime():
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    try:
        return find_runtime(BuildSettings(device=LAST))
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def graphs(model, batches, calibration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    formats = uniform_formats(model, "int8")
    return {
        "fp16": export_onnx(model.module, folder / "fp16.onnx", IMGSZ).path,
        "int8": export_onnx(apply_formats(model, formats, calibration), folder / "int8.onnx", IMGSZ).path,
    }


@pytest.fixture(scope="module")
def built(runtime, graphs, batches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    # cuBLAS and cuDNN are not everywhere, and level 1 builds in a tenth of the time.
    sources = ("EDGE_MASK_CONVOLUTIONS",) if runtime.version.startswith("8.") else None
    settings = BuildSettings(optimization_level=1, tactic_sources=sources, device=LAST)
    image = next(iter(batches))["img"][:1].numpy()
    return {
        name: build(path, folder / f"{name}.engine", settings, runtime=runtime, image=image, timing_caches=folder)
        for name, path in graphs.items()
    }


def test_the_engine_was_built_on_the_gpu_that_was_named(runtime, built):
    properties = torch.cuda.get_device_properties(LAST)
    assert runtime.gpu["uuid"] == f"GPU-{properties.uuid}"
    assert built["int8"].engine.device == properties.name


def test_layers_run_as_planned(model, built):
    types = built["int8"].engine.layer_types
    planned = set(uniform_formats(model, "int8")) - set(built["int8"].engine.repaired)
    assert len(planned) >= 80
    assert {name for name in planned if types[name] != "Int8"} == set()
    # What TensorRT's weakly typed versions choose to run in FP32 although they may run it in FP16 is counted.
    floats = [
        name for name, kind in built["fp16"].engine.layer_types.items() if kind == "Float" and ".dfl." not in name
    ]
    assert len(floats) <= 3


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_an_engine_computes_what_its_graph_says(built, data, name):
    with TensorRt(built[name].engine.path, device=LAST) as backend:
        engine = evaluate(backend, data, label=f"{name} engine")
    onnx = evaluate(OnnxRuntime(built[name].onnx), data, label=f"{name} ONNX")
    assert compare(engine, onnx.predictions).agreement > 0.9
    assert engine.main == pytest.approx(onnx.main, abs=0.05)


def test_latency_side_by_side(built):
    with (
        TensorRt(built["fp16"].engine.path, device=LAST) as fp16,
        TensorRt(built["int8"].engine.path, device=LAST) as int8,
    ):
        measured = time_in_turns({"fp16": fp16, "int8": int8}, 4, 200, "fp16")
        assert fp16.describe()["cuda_graph"] == "captured"
    latency = measured.latencies["int8"]
    assert 0.05 < latency.p50_ms < 20
    assert latency.speedup_interval[0] <= latency.speedup <= latency.speedup_interval[1]
    assert latency.device_memory_bytes > 1e6
    before, after = measured.gpu
    assert before.name == after.name == torch.cuda.get_device_properties(LAST).name
    assert after.sm_clock_mhz > 300
    print({name: (found.p50_ms, found.speedup) for name, found in measured.latencies.items()}, after, measured.noise)


def test_the_state_is_that_of_the_gpu_in_use(runtime):
    held = torch.zeros(1 << 28, device=f"cuda:{LAST}")  # a gigabyte
    assert os.getpid() in read_gpu(runtime.gpu["uuid"]).processes
    del held


def test_an_engine_whose_process_is_killed(built):
    with TensorRt(built["int8"].engine.path, device=LAST) as backend:
        backend.time(5)
        os.kill(backend.pid, signal.SIGKILL)
        with pytest.raises(BackendError, match="signal 9 during 'time'"):
            backend.time(5)


def test_a_gpu_that_is_not_there(built):
    with pytest.raises(BackendError, match="there is no GPU 99"):
        TensorRt(built["int8"].engine.path, device=99)


def test_ranges_of_the_gpu_are_those_of_the_cpu(weights, data, calibration):
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    device = f"cuda:{LAST}"
    found = calibrate(load_model(weights, device), Batches(data.calibration, list(range(8)), 4, device))
    # The searched range is one of 91 steps of 1 %.
    assert found.amax == pytest.approx(calibration.amax, rel=0.03)
    assert found.largest == pytest.approx(calibration.largest, rel=0.01)
