# SPDX-License-Identifier: AGPL-3.0-or-later
"""An engine on the GPU, through the worker: infer, time, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ultra_mq.core import BackendError, KernelTime
from ultra_mq.runtimes.engine import QUICK_TIMEOUT_S, engine_target
from ultra_mq.runtimes.inspection import EngineLayer, read_inspector
from ultra_mq.runtimes.worker import Interpreter, Segment, Worker, WorkerError


def read_layers(path: Path, python: str | None = None, device: int = 0) -> tuple[EngineLayer, ...]:
    """Open an engine and look into it."""
    with TensorRt(path, python, device=device) as engine:
        return engine.inspect()


class TensorRt:
    """An engine open on the GPU, in a worker process; implements ``Backend``.

    Args:
        path: Engine file, with Ultralytics' header or without.
        python: Interpreter that has TensorRT.
        warmup_ms: Milliseconds of passes before each timed turn.
        device: Number of the GPU.

    Raises:
        BackendError: The file cannot be opened with this TensorRT on this GPU.
    """

    format = "engine"

    def __init__(self, path: Path, python: str | None = None, warmup_ms: float = 200.0, device: int = 0) -> None:
        from ultralytics.nn.backends.base import BaseBackend

        if not path.is_file():
            raise BackendError(f"Engine '{path}' not found. Build one with ultra-mq build.")
        if engine_target(path) == "rtx":
            raise BackendError(
                f"'{path}' is an engine of TensorRT-RTX, which TensorRT cannot run. Build with --target tensorrt."
            )
        offset, metadata = BaseBackend.engine_header(path)
        self.path = path
        self.metadata: dict[str, Any] = dict(metadata)
        self.warmup_ms = warmup_ms
        self.cuda_graph: bool | None = None
        self.wall_ms: list[float] = []
        self._worker = Worker(Interpreter("tensorrt", python, device))
        try:
            self._about = self._worker.call("version", QUICK_TIMEOUT_S)
            self._segment = Segment(self._worker, path, offset, QUICK_TIMEOUT_S)
        except WorkerError as error:
            self._worker.close()
            raise WorkerError(
                f"'{path}' cannot be opened: {error} An engine runs with the TensorRT version and on the kind of GPU "
                f"that it was built with.",
                error.log,
            ) from error
        except BaseException:
            self._worker.close()
            raise

    @property
    def pid(self) -> int:
        """Process number of the worker."""
        return self._worker.pid

    @property
    def gpu_uuid(self) -> str | None:
        """UUID of the GPU that the engine is open on."""
        uuid: str | None = (self._about["gpu"] or {}).get("uuid")
        return uuid

    @property
    def batch(self) -> int:
        """Images in one timed pass."""
        (name,) = self._segment.layout["inputs"]
        return int(self._segment.layout["tensors"][name]["shape"][0])

    @property
    def device_memory_bytes(self) -> int:
        """GPU memory that engine, context and buffers take."""
        return int(self._segment.layout["device_memory_bytes"])

    def infer(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run one batch, float32 in [0, 1], shape (B, C, H, W)."""
        (name,) = self._segment.layout["inputs"]
        self._segment.array(name, batch.shape)[...] = batch
        answer = self._worker.call("infer", QUICK_TIMEOUT_S, shapes={name: list(batch.shape)})
        return [self._segment.array(output, shape).copy() for output, shape in answer["shapes"].items()]

    def time(self, runs: int) -> list[float]:
        """GPU milliseconds of each of ``runs`` passes over a resident batch, by CUDA events, after a warm-up."""
        answer = self._worker.call("time", QUICK_TIMEOUT_S + runs, runs=runs, warmup_ms=self.warmup_ms)
        self.cuda_graph = answer["cuda_graph"]
        self.wall_ms += answer["wall_ms"]
        return [float(sample) for sample in answer["samples_ms"]]

    def inspect(self, runs: int = 20) -> tuple[EngineLayer, ...]:
        """Layers with their types and times; the profiler runs in a context of its own."""
        text = self._worker.call("inspect", QUICK_TIMEOUT_S)["information"]
        times = self._worker.call("profile", QUICK_TIMEOUT_S, runs=runs)["layers_ms"]
        return read_inspector(text, [(name, ms) for name, ms in times])

    def profile(self, runs: int) -> list[KernelTime]:
        """Times of the kernels, by TensorRT's profiler."""
        return [KernelTime((layer.name, *layer.nodes), layer.ms) for layer in self.inspect(runs) if layer.ms]

    def describe(self) -> dict[str, str]:
        """Runtime, version and device, for reports."""
        gpu = self._about["gpu"]
        captured = {True: "captured", False: "not captured", None: "not tried"}[self.cuda_graph]
        return {
            "runtime": "TensorRT",
            "version": self._about["version"],
            "device": gpu["name"] if gpu else "unknown",
            "compute_capability": gpu["compute_capability"] if gpu else "unknown",
            "cuda_graph": captured,
        }

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def __enter__(self) -> TensorRt:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
