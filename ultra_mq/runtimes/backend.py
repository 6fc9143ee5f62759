# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runtimes behind one small protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ultra_mq.core import BackendError, KernelTime


class Backend(Protocol):
    """An open artefact on a runtime, such as ``OnnxRuntime(path)``."""

    @property
    def path(self) -> Path:
        """The file that is open."""

    @property
    def format(self) -> str:
        """Ultralytics' name of the file format, such as ``onnx`` or ``engine``."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Ultralytics metadata stored in the file."""

    @property
    def batch(self) -> int:
        """Images in one timed pass."""

    def infer(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run one batch, float32 in [0, 1], shape (B, C, H, W)."""

    def time(self, runs: int) -> list[float]:
        """Latency in milliseconds of each of ``runs`` passes over one resident batch."""

    def profile(self, runs: int) -> list[KernelTime]:
        """Times of the kernels, apart from ``time`` because a profiler slows the passes down."""

    def describe(self) -> dict[str, str]:
        """Runtime, version and device, for reports."""

    def close(self) -> None:
        """Give back memory and processes."""


CpuRuntime = Literal["onnxruntime", "openvino"]


def open_file(
    path: Path,
    trt_python: str | None = None,
    threads: int | None = None,
    runtime: CpuRuntime = "onnxruntime",
    device: int = 0,
) -> Backend:
    """Open an artefact on the runtime that its suffix names.

    Args:
        path: ``.onnx`` or ``.engine`` file.
        trt_python: Interpreter that has TensorRT.
        threads: CPU threads of an ONNX file.
        runtime: What runs an ONNX file.
        device: Number of the GPU that runs an engine.

    Raises:
        BackendError: The file is of another kind, or its runtime cannot open it.
    """
    from ultra_mq.runtimes.onnxruntime import OnnxRuntime
    from ultra_mq.runtimes.openvino import OpenVino
    from ultra_mq.runtimes.tensorrt import TensorRt

    if path.suffix == ".onnx":
        return OpenVino(path, threads) if runtime == "openvino" else OnnxRuntime(path, threads)
    if path.suffix == ".engine":
        return TensorRt(path, trt_python, device=device)
    raise BackendError(f"'{path}' is neither .onnx nor .engine. Export the model, or build an engine from it.")
