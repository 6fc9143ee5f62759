# SPDX-License-Identifier: AGPL-3.0-or-later
"""OpenVINO: the runtime on which INT8 pays on a CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ultra_mq.core import BackendError, ExportError, KernelTime
from ultra_mq.graph import load_graph, signed_activations, weights_leave_room
from ultra_mq.runtimes.cpu import allowed_instructions, moves_signed, overflows
from ultra_mq.runtimes.onnxruntime import exported_shape

if TYPE_CHECKING:
    import onnx


class OpenVino:
    """An ONNX file open on OpenVINO; implements ``Backend``.

    Args:
        path: ONNX file with a static input.
        threads: Threads of one inference; all cores by default.
    """

    format = "onnx"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            import openvino
        except ImportError as error:
            raise BackendError(
                "OpenVINO is not installed. Install it with: pip install 'ultra-mq[openvino]'"
            ) from error
        self.settings: dict[str, str | int | bool] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        if allowed_instructions():
            # OpenVINO would choose BF16 by what the CPU has, for which oneDNN may then have no kernels.
            self.settings["INFERENCE_PRECISION_HINT"] = "f32"
        if threads:
            self.settings["INFERENCE_NUM_THREADS"] = threads
        try:
            graph = load_graph(path)
        except ExportError as error:
            raise BackendError(f"OpenVINO cannot load '{path}': {error}") from error
        _check_truth(path, graph)
        self.core = openvino.Core()
        try:
            self.model = self.core.compile_model(str(path), "CPU", self.settings)
        except Exception as error:
            raise BackendError(f"OpenVINO cannot load '{path}': {error}. Export it again.") from error
        self.request = self.model.create_infer_request()
        self.path = path
        self.metadata = {entry.key: entry.value for entry in graph.metadata_props}
        source = self.model.input(0).get_partial_shape()
        self.shape = exported_shape([d.get_length() if d.is_static else None for d in source], self.metadata)
        self.batch = self.shape[0]
        self.version = openvino.__version__

    def infer(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run one batch, float32 in [0, 1], shape (B, C, H, W)."""
        found = self.request.infer([batch.astype(np.float32)])
        # The request writes its next results into the same memory.
        return [np.array(found[output]) for output in self.model.outputs]

    def time(self, runs: int) -> list[float]:
        """Latency in milliseconds of each of ``runs`` passes over one resident batch."""
        batch = np.random.default_rng(0).random(self.shape, dtype=np.float32)
        samples = []
        for _ in range(runs):
            start = time.perf_counter()
            self.request.infer([batch], share_inputs=True)
            samples.append((time.perf_counter() - start) * 1e3)
        return samples

    def profile(self, runs: int) -> list[KernelTime]:
        """Times of the kernels; the model is compiled once more, with performance counters."""
        model = self.core.compile_model(str(self.path), "CPU", {**self.settings, "PERF_COUNT": True})
        request = model.create_infer_request()
        batch = np.random.default_rng(0).random(self.shape, dtype=np.float32)
        total: dict[str, float] = {}
        for turn in range(runs + 1):
            request.infer([batch], share_inputs=True)
            for kernel in request.get_profiling_info() if turn else ():
                total[kernel.node_name] = total.get(kernel.node_name, 0.0) + kernel.real_time.total_seconds() * 1e3
        found = []
        for kernel in model.get_runtime_model().get_ordered_ops():
            name = kernel.get_friendly_name()
            # A reorder stands for no node of the graph, but its name tells between which ones it is.
            fused = str(kernel.get_rt_info()["originalLayersNames"].value or name)
            if total.get(name):
                found.append(KernelTime(tuple(fused.split(",")), total[name] / runs))
        return found

    def close(self) -> None:
        """Nothing outlives the object."""

    def describe(self) -> dict[str, str]:
        """Runtime, version and device, for reports."""
        return {
            "runtime": "OpenVINO",
            "version": self.version,
            "device": "CPU",
            "threads": str(self.model.get_property("INFERENCE_NUM_THREADS")),
            "precision": self.model.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        }


def _check_truth(path: Path, graph: onnx.ModelProto) -> None:
    """Refuse graphs of which OpenVINO computes something else on this CPU.

    Raises:
        BackendError: It has signed activations or weights that overflow.
    """
    again = "Quantize it for OpenVINO with --runtime openvino, or run this file on ONNX Runtime."
    if moves_signed() and signed_activations(graph):
        raise BackendError(
            f"OpenVINO would not compute what '{path}' says: its 8-bit activations are signed, as TensorRT wants them, "
            f"and on a CPU without AMX OpenVINO gets other values from those. {again}"
        )
    if overflows() and not weights_leave_room(graph):
        raise BackendError(
            f"OpenVINO would not compute what '{path}' says: this CPU has no VNNI, so sums of 8-bit products are cut "
            f"off at 16 bits, which its weights overflow. {again}"
        )
