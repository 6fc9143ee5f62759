# SPDX-License-Identifier: AGPL-3.0-or-later
"""State of the GPU by NVML, recorded beside every latency so that a noisy run can be told."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuState:
    """The GPU at one moment.

    Attributes:
        name: Product name.
        driver: Driver version.
        sm_clock_mhz: Clock of the multiprocessors now.
        max_sm_clock_mhz: Highest clock it may reach.
        temperature_c: Temperature in degrees Celsius.
        utilization_percent: Share of the last second in which a kernel ran.
        processes: Process numbers with memory on the GPU.
    """

    name: str
    driver: str
    sm_clock_mhz: int
    max_sm_clock_mhz: int
    temperature_c: int
    utilization_percent: int
    processes: tuple[int, ...]


def read_gpu(uuid: str | None) -> GpuState | None:
    """Read the state of a GPU, or None where there is none or NVML cannot say.

    Args:
        uuid: Its UUID, as CUDA and NVML know it alike; their numbers differ, because CUDA counts the visible GPUs and
            NVML all of them, in another order.
    """
    try:
        import pynvml
    except ImportError:
        return None
    if uuid is None:
        return None
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            return GpuState(
                name=_text(pynvml.nvmlDeviceGetName(handle)),
                driver=_text(pynvml.nvmlSystemGetDriverVersion()),
                sm_clock_mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
                max_sm_clock_mhz=pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
                temperature_c=pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
                utilization_percent=pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
                processes=tuple(process.pid for process in processes),
            )
        finally:
            pynvml.nvmlShutdown()
    return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
