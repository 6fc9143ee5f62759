# SPDX-License-Identifier: AGPL-3.0-or-later
"""TensorRT 8.6, 10, 11 and TensorRT-RTX through the worker: build an engine, run it, look into it.

TensorRT builds on the GPU that the engine is for. TensorRT-RTX builds ahead of time, without a GPU, for GeForce RTX and
RTX PRO cards; its engines are not TensorRT plans, and a build proves that the graph parses and keeps its precisions,
not how fast TensorRT runs it.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import TypeAdapter

from ultra_mq.backends.worker import Interpreter, Progress, Segment, Worker, WorkerError
from ultra_mq.errors import BackendError
from ultra_mq.export import decode_patterns
from ultra_mq.files import atomic_path, write_text
from ultra_mq.inspection import EngineLayer, executed_types, read_inspector, read_rtx_table

Target = Literal["tensorrt", "rtx"]

QUICK_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class BuildSettings:
    """How an engine is built.

    Attributes:
        target: ``tensorrt``, or ``rtx`` for TensorRT-RTX.
        python: Interpreter that has TensorRT; ``ULTRA_MQ_TRT_PYTHON`` or our own where it is None. TensorRT-RTX always
            runs in our own.
        workspace_gb: Limit of the builder's scratch memory, or None for the whole GPU.
        optimization_level: 0 (quick build) to 5 (fast engine), or None for TensorRT's default of 3.
        profile: Smallest, best and largest shape of the input, for a graph with dynamic axes.
        version_compatible: Let later versions of TensorRT run the engine.
        hardware_compatible: Let other GPUs from Ampere on run the engine.
        dla_core: DLA core to run on, with fallback to the GPU.
        compute_capability: GPU generation that ``rtx`` builds for: 7.5, 8.x, 8.9, 12.x.
        tactic_sources: Kernel libraries to choose from, by TensorRT's names; None for its default.
        timeout_s: Seconds without a sign of life after which the builder is taken for hung.
    """

    target: Target = "tensorrt"
    python: str | None = None
    workspace_gb: float | None = None
    optimization_level: int | None = None
    profile: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla_core: int | None = None
    compute_capability: str = "8.9"
    tactic_sources: tuple[str, ...] | None = None
    timeout_s: float = 3600.0

    @property
    def interpreter(self) -> Interpreter:
        """Where the builder lives."""
        return Interpreter("tensorrt_rtx") if self.target == "rtx" else Interpreter("tensorrt", self.python)


@dataclass(frozen=True)
class Runtime:
    """A TensorRT that can be used.

    Attributes:
        target: ``tensorrt`` or ``rtx``.
        version: Its version.
        strongly_typed: Whether precision must stand in the graph (10, 11, RTX) or in builder flags (8.6).
        gpu: Name, compute capability and memory of the GPU; None for RTX on a machine without one.
    """

    target: Target
    version: str
    strongly_typed: bool
    gpu: dict[str, Any] | None


@dataclass(frozen=True)
class Engine:
    """An engine on disk; ``<file>.json`` beside it holds all of this.

    Attributes:
        path: Engine file with Ultralytics' metadata header.
        target: ``tensorrt`` or ``rtx``; one cannot run the other's engines.
        version: Version of the builder.
        device: GPU it was built on, or the compute capability it was built for ahead of time.
        size_bytes: Size of the file.
        build_seconds: Seconds in the builder.
        flags: Builder flags.
        onnx: ONNX file it was built from.
        onnx_sha256: Hash of that file.
        settings: Settings it was built with.
        layers: What the graph became.
        repaired: Layers left in float because the builder failed on them.
    """

    path: Path
    target: Target
    version: str
    device: str
    size_bytes: int
    build_seconds: float
    flags: tuple[str, ...]
    onnx: str
    onnx_sha256: str
    settings: BuildSettings
    layers: tuple[EngineLayer, ...]
    repaired: tuple[str, ...] = ()

    @property
    def layer_types(self) -> dict[str, str]:
        """Module path of every convolution to the type it runs in."""
        return executed_types(self.layers)


def find_runtime(settings: BuildSettings) -> Runtime:
    """Start a worker and ask it what it is.

    Raises:
        BackendError: TensorRT is missing or, for target ``tensorrt``, there is no GPU.
    """
    with Worker(settings.interpreter) as worker:
        answer = worker.call("version", QUICK_TIMEOUT_S)
    if settings.target == "tensorrt" and answer["gpu"] is None:
        raise BackendError(
            f"TensorRT {answer['version']} is installed but finds no GPU ({answer['no_gpu']}). "
            f"Build on the machine that has the GPU, or use --target rtx."
        )
    return Runtime(settings.target, answer["version"], answer["strongly_typed"], answer["gpu"])


def choose_runtime(target: Literal["auto"] | Target, settings: Callable[[Target], BuildSettings]) -> Runtime:
    """The runtime of a target; ``auto`` is TensorRT where it is usable, else TensorRT-RTX.

    Raises:
        BackendError: None is usable.
    """
    if target != "auto":
        return find_runtime(settings(target))
    reasons = []
    for option in get_args(Target):
        try:
            return find_runtime(settings(option))
        except BackendError as error:  # noqa: PERF203
            reasons.append(str(error))
    raise BackendError(" ".join(reasons))


def build_engine(
    onnx_file: Path,
    path: Path,
    metadata: Mapping[str, Any],
    settings: BuildSettings,
    runtime: Runtime,
    *,
    timing_caches: Path | None = None,
    on_progress: Progress | None = None,
) -> Engine:
    """Build an engine.

    Args:
        onnx_file: FP32 or Q/DQ graph for a weakly typed runtime, a graph with FP16 in it for a strongly typed one.
        path: Engine file to write; the file appears when it is whole, and a ``.json`` beside it.
        metadata: Ultralytics metadata for the header.
        settings: How to build.
        runtime: From ``find_runtime``.
        timing_caches: Folder of timing caches, one for each GPU, version and set of precisions; None keeps none.
        on_progress: Receives the builder's progress where it reports any.

    Raises:
        WorkerError: TensorRT refused the graph, or its process died; its own words are in the message.
    """
    flags = _choose_flags(onnx_file, settings, runtime)
    device = runtime.gpu["name"] if runtime.gpu and settings.target == "tensorrt" else settings.compute_capability
    request: dict[str, Any] = {**asdict(settings), "flags": flags}
    if not runtime.strongly_typed:
        request["precisions"] = _choose_precisions(onnx_file)
    request["profile"] = {"images": settings.profile} if settings.profile else None
    if settings.target == "tensorrt":
        request["compute_capability"] = None
    cache = None
    if timing_caches is not None and settings.target == "tensorrt":
        timing_caches.mkdir(parents=True, exist_ok=True)
        name = "-".join([device, runtime.version, *(flags or ("typed",))]).replace(" ", "_")
        cache = str(timing_caches / f"{name}.timing")
    header = json.dumps(dict(metadata)).encode()
    with Worker(settings.interpreter) as worker, tempfile.TemporaryDirectory(prefix="ultra-mq-build-") as folder:
        plan = Path(folder) / "plan"
        answer = worker.call(
            "build",
            settings.timeout_s,
            on_progress,
            onnx=str(onnx_file.resolve()),
            plan=str(plan),
            settings=request,
            timing_cache=cache,
        )
        with atomic_path(path) as temporary:
            # Ultralytics' own layout: length, JSON, engine (BaseBackend.engine_header).
            temporary.write_bytes(len(header).to_bytes(4, "little") + header + plan.read_bytes())
    layers = read_rtx_table(answer["layer_table"])
    if settings.target == "tensorrt":
        layers = read_layers(path, settings.python)
    built = Engine(
        path=path,
        target=settings.target,
        version=runtime.version,
        device=device,
        size_bytes=path.stat().st_size,
        build_seconds=float(answer["seconds"]),
        flags=flags,
        onnx=onnx_file.name,
        onnx_sha256=hashlib.sha256(onnx_file.read_bytes()).hexdigest(),
        settings=settings,
        layers=layers,
    )
    save_engine(built)
    return built


def save_engine(engine: Engine) -> None:
    """Write everything known of an engine into ``<file>.json`` beside it."""
    document = TypeAdapter(Engine).dump_json(engine, indent=1).decode()
    write_text(engine.path.with_name(f"{engine.path.name}.json"), document)


def load_engine(path: Path) -> Engine:
    """Read what ``save_engine`` wrote beside an engine.

    Raises:
        BackendError: There is no such file, or it is not ours.
    """
    file = path.with_name(f"{path.name}.json")
    try:
        return TypeAdapter(Engine).validate_python({**json.loads(file.read_text()), "path": path})
    except (OSError, ValueError) as error:
        raise BackendError(f"'{file}' cannot be read: {error}. Build the engine with ultra-mq build.") from error


def read_layers(path: Path, python: str | None = None) -> tuple[EngineLayer, ...]:
    """Open an engine and look into it."""
    with TensorRt(path, python) as engine:
        return engine.inspect()


class TensorRt:
    """An engine open on the GPU, in a worker process; implements ``Backend``.

    Args:
        path: Engine file, with Ultralytics' header or without.
        python: Interpreter that has TensorRT.
        warmup_ms: Milliseconds of passes before each timed turn.

    Raises:
        BackendError: The file cannot be opened with this TensorRT on this GPU.
    """

    format = "engine"

    def __init__(self, path: Path, python: str | None = None, warmup_ms: float = 200.0) -> None:
        from ultralytics.nn.backends.base import BaseBackend

        if not path.is_file():
            raise BackendError(f"Engine '{path}' not found. Build one with ultra-mq build.")
        if _described_as_rtx(path):
            raise BackendError(
                f"'{path}' is an engine of TensorRT-RTX, which TensorRT cannot run. Build with --target tensorrt."
            )
        offset, metadata = BaseBackend.engine_header(path)
        self.path = path
        self.metadata: dict[str, Any] = dict(metadata)
        self.warmup_ms = warmup_ms
        self.cuda_graph: bool | None = None
        self.wall_ms: list[float] = []
        self._worker = Worker(Interpreter("tensorrt", python))
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
    def batch(self) -> int:
        """Images in one timed pass."""
        (name,) = self._segment.layout["inputs"]
        return int(self._segment.layout["tensors"][name]["shape"][0])

    @property
    def device_memory_bytes(self) -> int:
        """GPU memory that engine, context and buffers take."""
        return int(self._segment.layout["device_memory_bytes"])

    def infer(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run one batch, float32 in [0, 1], shape (B, 3, H, W)."""
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


def _described_as_rtx(path: Path) -> bool:
    return path.with_name(f"{path.name}.json").exists() and load_engine(path).target == "rtx"


def _choose_precisions(onnx_file: Path) -> list[tuple[str, str]]:
    """Types for a weakly typed builder: box decode in FP32, every other layer that is not quantized in FP16.

    In a Q/DQ graph only convolutions and matrix products are told: what stands between them must stay free to be fused
    into INT8 kernels.
    """
    import onnx

    graph = onnx.load(str(onnx_file))
    rules = [(pattern, "FLOAT") for pattern in decode_patterns(graph)]
    if not any(node.op_type == "QuantizeLinear" for node in graph.graph.node):
        return [*rules, ("", "HALF")]
    dequantized = {out for node in graph.graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    floats = [
        node.name
        for node in graph.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[0] not in dequantized
    ]
    return rules + [(f"^{re.escape(name)}$", "HALF") for name in floats]


def _choose_flags(onnx_file: Path, settings: BuildSettings, runtime: Runtime) -> tuple[str, ...]:
    import onnx

    flags = ["VERSION_COMPATIBLE"] if settings.version_compatible else []
    if not runtime.strongly_typed:
        graph = onnx.load(str(onnx_file)).graph
        quantized = any(node.op_type == "QuantizeLinear" for node in graph.node)
        flags = ["FP16", *(["INT8"] if quantized else []), *flags]
    return tuple(flags)
