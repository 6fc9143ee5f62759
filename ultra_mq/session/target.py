# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where a model will run: a runtime on this machine, as budgets and the cache know it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ultra_mq.core import BackendError
from ultra_mq.runtimes import CpuRuntime, EngineTarget, Runtime
from ultra_mq.session.recipe import Recipe

DISTRIBUTIONS = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime"), "openvino": ("openvino",)}


@dataclass(frozen=True)
class Target:
    """A runtime on this machine.

    Attributes:
        name: ``onnxruntime``, ``openvino`` or ``tensorrt``.
        threads: CPU threads of one inference; 0 on a GPU.
        about: Name, version and device, as the cache knows the target by.
        engine: TensorRT, where that is the target.
    """

    name: Literal["onnxruntime", "openvino", "tensorrt"]
    threads: int
    about: dict[str, str]
    engine: Runtime | None = None

    @property
    def title(self) -> str:
        """Name for the reader."""
        names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
        where = f"{self.threads} thread{'s' if self.threads != 1 else ''} of " if self.threads else ""
        return f"{names[self.name]} {self.about['version']} on {where}{self.about['device']}"


def find_target(recipe: Recipe, ask: Callable[[EngineTarget], Runtime], tell: Callable[[str], None]) -> Target:
    """The recipe's target; ``auto`` is TensorRT where it works, else ONNX Runtime on the CPU.

    Args:
        recipe: Names the runtime.
        ask: Gives TensorRT, or raises ``BackendError``.
        tell: Receives the reason where ``auto`` falls back to the CPU.

    Raises:
        BackendError: The target cannot be used here.
    """
    if recipe.runtime in ("onnxruntime", "openvino"):
        return host_target(recipe, recipe.runtime)
    try:
        runtime = ask("tensorrt")
    except BackendError as error:
        if recipe.runtime == "tensorrt":
            raise
        tell(f"Budgets are proven on ONNX Runtime on the CPU, because TensorRT cannot be used: {error}")
        return host_target(recipe)
    return Target("tensorrt", 0, {"version": runtime.version, "device": runtime.device}, runtime)


def host_target(recipe: Recipe, name: CpuRuntime = "onnxruntime") -> Target:
    """A runtime on this machine's CPU."""
    from ultralytics.utils.torch_utils import get_cpu_info

    return Target(name, recipe.bench.threads, {"version": _version(name), "device": get_cpu_info()})


def _version(name: str) -> str:
    for distribution in DISTRIBUTIONS[name]:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:  # noqa: PERF203
            continue
    raise BackendError(f"{name} is not installed. Install it with: pip install 'ultra-mq[{name}]'")
