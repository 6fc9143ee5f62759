# SPDX-License-Identifier: AGPL-3.0-or-later
import types

import pynvml

from ultra_mq.measure.gpu import read_gpu


def test_without_a_driver(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert read_gpu("GPU-1") is None
    assert read_gpu(None) is None


def test_the_gpu_is_named_by_its_uuid(monkeypatch):
    """CUDA counts visible GPUs, NVML all of them: a number of one is none of the other."""
    answers = {
        "nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetName": b"NVIDIA H200",
        "nvmlSystemGetDriverVersion": "580.159.04", "nvmlDeviceGetClockInfo": 1980, "nvmlDeviceGetMaxClockInfo": 1980,
        "nvmlDeviceGetTemperature": 41, "nvmlDeviceGetUtilizationRates": types.SimpleNamespace(gpu=61),
        "nvmlDeviceGetComputeRunningProcesses": [types.SimpleNamespace(pid=7)],
    }  # fmt: skip
    for name, value in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, value=value: value)
    asked = []
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", asked.append)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    state = read_gpu("GPU-5f37359d")
    assert asked == ["GPU-5f37359d"]
    assert (state.name, state.driver, state.sm_clock_mhz, state.processes) == ("NVIDIA H200", "580.159.04", 1980, (7,))
