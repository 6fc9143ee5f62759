# SPDX-License-Identifier: AGPL-3.0-or-later
"""An open engine: buffers, stream, CUDA graph, timing, inspection."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from typing import Any

import numpy as np

from .cuda import Failure, check, load_cuda
from .log import Log

ALIGNMENT = 256
PROFILE_WARMUP_RUNS = 5


class OpenEngine:
    """An engine on the GPU with one buffer for each tensor, there and in memory that the client shares.

    Args:
        trt: Module ``tensorrt`` or ``tensorrt_rtx``.
        logger: TensorRT logger.
        log: What that logger fills.
        content: Serialized engine.
        segment: File to map; it is grown to hold every tensor at its largest shape.
    """

    def __init__(self, trt: Any, logger: Any, log: Log, content: bytes, segment: str) -> None:
        self.trt, self.cuda = trt, load_cuda()
        cuda = self.cuda
        log.clear()
        free_before = check(cuda.cudaMemGetInfo())[0]
        self.runtime = trt.Runtime(logger)
        engine = self.runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise Failure(log.reason("the engine cannot be read; it belongs to another version or GPU"))
        context = engine.create_execution_context()
        if context is None:
            raise Failure(log.reason("no execution context; the GPU may be out of memory"))
        self.engine, self.context = engine, context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = sorted(name for name in names if name not in self.inputs)
        self.largest = {name: tuple(engine.get_tensor_profile_shape(name, 0)[2]) for name in self.inputs}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._set_shapes(self.largest)
        self.tensors: dict[str, dict[str, Any]] = {}
        total = 0
        for name in self.inputs + self.outputs:
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            shape = [int(size) for size in context.get_tensor_shape(name)]
            size = int(np.prod(shape)) * dtype.itemsize
            self.tensors[name] = {"dtype": dtype.name, "shape": shape, "offset": total, "size": size}
            total += -(-size // ALIGNMENT) * ALIGNMENT
        with Path(segment).open("r+b") as file:
            file.truncate(total)
            self.memory = mmap.mmap(file.fileno(), total)
        self.host = {
            name: np.frombuffer(self.memory, np.uint8, tensor["size"], tensor["offset"])
            for name, tensor in self.tensors.items()
        }
        self.stream = check(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.device = {name: check(cuda.cudaMalloc(tensor["size"])) for name, tensor in self.tensors.items()}
        self._bind(context)
        self.graph: Any = None
        self.graph_error = ""
        self.ready = False
        self.device_memory_bytes = free_before - check(cuda.cudaMemGetInfo())[0]

    def describe(self) -> dict[str, Any]:
        """Layout of the segment, and GPU memory taken by engine, context and buffers."""
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "tensors": self.tensors,
            "device_memory_bytes": self.device_memory_bytes,
        }

    def infer(self, shapes: dict[str, Any]) -> dict[str, Any]:
        """Copy the inputs in, run, copy the outputs out; returns the shapes of the outputs."""
        kinds = self.cuda.cudaMemcpyKind
        self._set_shapes({name: tuple(shape) for name, shape in shapes.items()})
        for name in self.inputs:
            self._copy(name, kinds.cudaMemcpyHostToDevice)
        self._enqueue()
        for name in self.outputs:
            self._copy(name, kinds.cudaMemcpyDeviceToHost)
        check(self.cuda.cudaStreamSynchronize(self.stream))
        found = {name: self.context.get_tensor_shape(name) for name in self.outputs}
        return {"shapes": {name: [int(size) for size in shape] for name, shape in found.items()}}

    def time(self, runs: int, warmup_ms: float) -> dict[str, Any]:
        """CUDA events around each pass over resident input; the wall time of passes with both copies apart."""
        cuda = self.cuda
        if not self.ready:
            self._make_ready()
        launch = self._enqueue if self.graph is None else self._replay
        deadline = time.perf_counter() + warmup_ms / 1e3
        while time.perf_counter() < deadline:
            launch()
            check(cuda.cudaStreamSynchronize(self.stream))
        begin, end = check(cuda.cudaEventCreate()), check(cuda.cudaEventCreate())
        samples = []
        for _ in range(runs):
            check(cuda.cudaEventRecord(begin, self.stream))
            launch()
            check(cuda.cudaEventRecord(end, self.stream))
            check(cuda.cudaEventSynchronize(end))
            samples.append(float(check(cuda.cudaEventElapsedTime(begin, end))))
        for event in (begin, end):
            check(cuda.cudaEventDestroy(event))
        walls = []
        for _ in range(max(10, runs // 10)):
            start = time.perf_counter()
            self.infer(self.largest)
            walls.append((time.perf_counter() - start) * 1e3)
        return {"samples_ms": samples, "wall_ms": walls, "cuda_graph": self.graph is not None, "why": self.graph_error}

    def inspect(self) -> str:
        """The inspector's JSON."""
        inspector = self.engine.create_engine_inspector()
        inspector.execution_context = self.context
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def profile(self, runs: int) -> list[list[Any]]:
        """Name and mean milliseconds of each layer, in the order of execution."""
        trt = self.trt
        totals: dict[str, float] = {}

        class Profiler(trt.IProfiler):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                totals[layer_name] = totals.get(layer_name, 0.0) + ms

        # A context of its own: a profiler stays with its context and slows every later pass.
        context = self.engine.create_execution_context()
        for name, shape in self.largest.items():
            context.set_input_shape(name, shape)
        self._bind(context)
        for run in range(PROFILE_WARMUP_RUNS + runs):
            if run == PROFILE_WARMUP_RUNS:
                context.profiler = Profiler()
            context.execute_async_v3(int(self.stream))
            check(self.cuda.cudaStreamSynchronize(self.stream))
        return [[name, total / runs] for name, total in totals.items()]

    def _bind(self, context: Any) -> None:
        for name, pointer in self.device.items():
            context.set_tensor_address(name, int(pointer))

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        if shapes == self.shapes:
            return
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise Failure(f"the engine's profile does not allow shape {shape} for '{name}'")
        self.shapes = shapes
        self.graph, self.ready = None, False

    def _make_ready(self) -> None:
        generator = np.random.default_rng(0)
        self._set_shapes(self.largest)
        for name in self.inputs:
            tensor = self.tensors[name]
            values = generator.random(tensor["shape"], dtype=np.float32).astype(tensor["dtype"])
            self.host[name][:] = values.reshape(-1).view(np.uint8)
            self._copy(name, self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)
        # TensorRT allocates on its first run, which a capture would refuse.
        self._enqueue()
        check(self.cuda.cudaStreamSynchronize(self.stream))
        self._capture()
        self.ready = True

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(int(self.stream)):
            raise Failure("the engine refused to run")

    def _replay(self) -> None:
        check(self.cuda.cudaGraphLaunch(self.graph, self.stream))

    def _copy(self, name: str, kind: Any) -> None:
        host, device, size = self.host[name].ctypes.data, self.device[name], self.tensors[name]["size"]
        to_device = kind == self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        target, source = (device, host) if to_device else (host, device)
        check(self.cuda.cudaMemcpyAsync(target, source, size, kind, self.stream))

    def _capture(self) -> None:
        cuda = self.cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        try:
            check(cuda.cudaStreamBeginCapture(self.stream, mode))
            try:
                self._enqueue()
            finally:
                graph = check(cuda.cudaStreamEndCapture(self.stream))
            self.graph = check(cuda.cudaGraphInstantiate(graph, 0))
        except Exception as error:
            self.graph, self.graph_error = None, str(error)
