# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an engine is: the settings it is built with, the TensorRT that builds it, and its description on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from ultra_mq.backends.worker import Interpreter, Worker
from ultra_mq.errors import BackendError
from ultra_mq.files import write_text
from ultra_mq.inspection import EngineLayer, executed_types

Target = Literal["tensorrt", "rtx"]

QUICK_TIMEOUT_S = 120.0
"""Seconds that anything but a build may take."""


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


def describe_path(path: Path) -> Path:
    """The file beside an engine that describes it."""
    return path.with_name(f"{path.name}.json")


def save_engine(engine: Engine) -> None:
    """Write everything known of an engine into ``<file>.json`` beside it."""
    document = TypeAdapter(Engine).dump_json(engine, indent=1).decode()
    write_text(describe_path(engine.path), document)


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
