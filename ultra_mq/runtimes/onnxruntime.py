# SPDX-License-Identifier: AGPL-3.0-or-later
"""ONNX Runtime: runs FP32 and Q/DQ graphs wherever there is a CPU."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ultra_mq.core import BackendError, KernelTime

KERNEL = "_kernel_time"
"""What the profiler appends to the name of a node."""


class OnnxRuntime:
    """An ONNX file open on ONNX Runtime; implements ``Backend``.

    Args:
        path: ONNX file with a static input.
        threads: Threads of one inference.
    """

    format = "onnx"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        self.options = options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        # Bit-exact repeats are worth more here than the last percent of speed.
        options.use_deterministic_compute = True
        try:
            try:
                self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph:
                # Its own fusion of Q/DQ around a Concat makes nodes that it refuses when the scales are FP16.
                options.add_session_config_entry("session.disable_quant_qdq", "1")
                self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot load '{path}': {error}. Export it again.") from error
        self.path = path
        self.metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        self.input = self.session.get_inputs()[0]
        self.dtype = np.float16 if self.input.type == "tensor(float16)" else np.float32
        self.shape = exported_shape(self.input.shape, self.metadata)
        self.batch = self.shape[0]
        self.version = onnxruntime.__version__

    def infer(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run one batch, float32 in [0, 1], shape (B, C, H, W)."""
        outputs: list[np.ndarray] = self.session.run(None, {self.input.name: batch.astype(self.dtype)})
        # Ultralytics' decoding of FP16 boxes in pixels would lose what FP16 cannot hold.
        return [np.asarray(output, np.float32) for output in outputs]

    def time(self, runs: int) -> list[float]:
        """Latency in milliseconds of each of ``runs`` passes over one resident batch."""
        batch = np.random.default_rng(0).random(self.shape, dtype=np.float32).astype(self.dtype)
        samples = []
        for _ in range(runs):
            start = time.perf_counter()
            self.session.run(None, {self.input.name: batch})
            samples.append((time.perf_counter() - start) * 1e3)
        return samples

    def profile(self, runs: int) -> list[KernelTime]:
        """Times of the kernels, in a session of their own with ONNX Runtime's profiler."""
        import onnxruntime

        batch = np.random.default_rng(0).random(self.shape, dtype=np.float32).astype(self.dtype)
        with tempfile.TemporaryDirectory(prefix="ultra-mq-profile-") as folder:
            self.options.enable_profiling = True
            self.options.profile_file_prefix = str(Path(folder) / "profile")
            try:
                session = onnxruntime.InferenceSession(str(self.path), self.options, providers=["CPUExecutionProvider"])
            finally:
                self.options.enable_profiling = False
            for _ in range(runs + 1):
                session.run(None, {self.input.name: batch})
            events = json.loads(Path(session.end_profiling()).read_text())
        times: dict[str, list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
                times.setdefault(event["name"].removesuffix(KERNEL), []).append(event["dur"] / 1e3)
        return [KernelTime((name,), float(np.mean(found[1:]))) for name, found in times.items()]

    def close(self) -> None:
        """Nothing outlives the object."""

    def describe(self) -> dict[str, str]:
        """Runtime, version and device, for reports."""
        return {
            "runtime": "ONNX Runtime",
            "version": self.version,
            "device": "CPU",
            "threads": str(self.session.get_session_options().intra_op_num_threads),
        }


def exported_shape(shape: Sequence[int | str | None], metadata: Mapping[str, str]) -> tuple[int, ...]:
    """Input shape of a graph; where an axis is dynamic, the size that Ultralytics exported at."""
    size = [int(found) for found in re.findall(r"\d+", metadata.get("imgsz", ""))] or [640]
    exported = (int(metadata.get("batch", 1)), int(metadata.get("channels", 3)), size[0], size[-1])
    return tuple(d if isinstance(d, int) else e for d, e in zip(shape, exported, strict=True))
