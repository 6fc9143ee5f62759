# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an engine is: the settings it is built with, the TensorRT that builds it, and its description on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, TypeAdapter

from ultra_mq.core import BackendError, Strict, write_text
from ultra_mq.runtimes.inspection import EngineLayer, executed_types
from ultra_mq.runtimes.worker import Interpreter, Worker

EngineTarget = Literal["tensorrt", "rtx"]

QUICK_TIMEOUT_S = 120.0
"""Seconds that anything but a build may take."""


class BuildOptions(Strict):
    """What a user can say about a build, in recipes and on the command line."""

    trt_python: str | None = Field(
        None, description="Python that has TensorRT; `ULTRA_MQ_TRT_PYTHON` or the running one by default."
    )
    workspace_gb: float | None = Field(
        None, gt=0, description="Scratch memory of the builder; the whole GPU by default."
    )
    optimization_level: int | None = Field(
        None, ge=0, le=5, description="0 builds quickly, 5 builds fast engines; TensorRT's default is 3."
    )
    avg_timing_iterations: int | None = Field(
        None,
        ge=1,
        description="Runs that the builder averages when it times a kernel; more find faster ones more surely.",
    )
    version_compatible: bool = Field(False, description="Let later versions of TensorRT run the engine.")
    hardware_compatible: bool = Field(False, description="Let other GPUs from Ampere on run the engine.")
    dla_core: int | None = Field(None, ge=0, description="DLA core to run on, with fallback to the GPU.")
    compute_capability: str = Field(
        "8.9", pattern=r"^\d+\.\d$", description="GPU generation that `rtx` builds for, such as 8.9."
    )
    tactic_sources: tuple[str, ...] | None = Field(
        None, description="Kernel libraries to choose from, by TensorRT's names, such as `EDGE_MASK_CONVOLUTIONS`."
    )
    timeout_s: float = Field(3600, gt=0, description="Seconds without a sign of life before the builder is ended.")


class BuildSettings(BuildOptions):
    """How an engine is built.

    Attributes:
        target: ``tensorrt``, or ``rtx`` for TensorRT-RTX, which always runs in our own Python.
        device: Number of the GPU.
        profile: Smallest, best and largest shape of the input, for a graph with dynamic axes.
    """

    target: EngineTarget = "tensorrt"
    device: int = 0
    profile: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def interpreter(self) -> Interpreter:
        """Where the builder lives."""
        if self.target == "rtx":
            return Interpreter("tensorrt_rtx")
        return Interpreter("tensorrt", self.trt_python, self.device)


@dataclass(frozen=True)
class Runtime:
    """A TensorRT that can be used.

    Attributes:
        target: ``tensorrt`` or ``rtx``.
        version: Its version.
        strongly_typed: Whether precision must stand in the graph (10, 11, RTX) or in builder flags (8.6).
        gpu: Name, compute capability, memory and UUID of the GPU; None for RTX on a machine without one.
    """

    target: EngineTarget
    version: str
    strongly_typed: bool
    gpu: dict[str, Any] | None

    @property
    def device(self) -> str:
        """Name of the GPU."""
        return str((self.gpu or {}).get("name", "unknown"))

    @property
    def key(self) -> dict[str, Any]:
        """What an engine depends on: another GPU of the same kind runs it as well."""
        gpu = {key: value for key, value in (self.gpu or {}).items() if key != "uuid"}
        return {**asdict(self), "gpu": gpu}


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
        tries_ms: Median latencies of all builds of the graph, this one's among them, where there were several.
    """

    path: Path
    target: EngineTarget
    version: str
    device: str
    size_bytes: int
    build_seconds: float
    flags: tuple[str, ...]
    onnx: str
    onnx_sha256: str
    settings: dict[str, Any]
    layers: tuple[EngineLayer, ...]
    repaired: tuple[str, ...] = ()
    tries_ms: tuple[float, ...] = ()

    @property
    def runtime_name(self) -> str:
        """Name and version of the TensorRT that built it."""
        return f"{'TensorRT-RTX' if self.target == 'rtx' else 'TensorRT'} {self.version}"

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


def choose_runtime(target: Literal["auto"] | EngineTarget, ask: Callable[[EngineTarget], Runtime]) -> Runtime:
    """The runtime of a target; ``auto`` is TensorRT where it is usable, else TensorRT-RTX.

    Raises:
        BackendError: None is usable.
    """
    if target != "auto":
        return ask(target)
    reasons = []
    for option in get_args(EngineTarget):
        try:
            return ask(option)
        except BackendError as error:  # noqa: PERF203
            reasons.append(str(error))
    raise BackendError(" ".join(reasons))


def describe_path(path: Path) -> Path:
    """The file beside an engine that describes it."""
    return path.with_name(f"{path.name}.json")


def save_engine(engine: Engine) -> None:
    """Write everything known of an engine into ``<file>.json`` beside it."""
    document = TypeAdapter(Engine).dump_json(engine, indent=1).decode()
    write_text(describe_path(engine.path), document)


def engine_target(path: Path) -> EngineTarget | None:
    """What built an engine; None where nothing beside it says so, as with engines that Ultralytics built."""
    try:
        target: EngineTarget | None = json.loads(describe_path(path).read_text())["target"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return target


def load_engine(path: Path) -> Engine:
    """Read what ``save_engine`` wrote beside an engine.

    Raises:
        BackendError: There is no such file, or it is not ours.
    """
    file = describe_path(path)
    try:
        return TypeAdapter(Engine).validate_python({**json.loads(file.read_text()), "path": path})
    except (OSError, ValueError) as error:
        raise BackendError(f"'{file}' cannot be read: {error}. Build the engine with ultra-mq build.") from error
