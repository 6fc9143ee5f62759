# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this machine can do, and what to install for the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from ultra_mq.core import BackendError, quiet
from ultra_mq.runtimes import BuildSettings, EngineTarget, cpu_flags, find_runtime, moves_signed, overflows

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Diagnosis:
    """One line of the diagnosis.

    Attributes:
        name: What was looked for.
        state: ``ok``, ``missing`` (not installed) or ``broken`` (installed and not usable).
        detail: Version, or the reason and what to install.
        required: Whether ``ultra-mq autoquant`` needs it.
    """

    name: str
    state: State
    detail: str
    required: bool


def diagnose() -> list[Diagnosis]:
    """Look at everything that a run may use."""
    checks = [Diagnosis("Python", "ok", platform.python_version(), True)]
    required = {
        "torch": "torch",
        "torchvision": "torchvision",
        "ultralytics": "ultralytics",
        "modelopt.torch.quantization": "nvidia-modelopt",
        "modelopt.onnx.autocast": "nvidia-modelopt",
        "onnx": "onnx",
        "scipy.optimize": "scipy",
        "onnxruntime": "onnxruntime-gpu",
        "pycocotools.coco": "pycocotools",
    }
    checks += [_import(module, package, _install(package), required=True) for module, package in required.items()]
    checks += [_cpu(), _gpu()]
    checks += [_engine_builder("TensorRT", "tensorrt"), _engine_builder("TensorRT-RTX", "rtx")]
    checks.append(_import("openvino", "openvino", "pip install 'ultra-mq[openvino]'"))
    return checks


def _install(package: str) -> str:
    """How to install a dependency, at the versions that our own metadata asks for."""
    wanted = (requirement.partition(";")[0].strip() for requirement in importlib.metadata.requires("ultra-mq") or ())
    exact = next((text for text in wanted if re.match(rf"{package}(?![\w-])", text)), package)
    return f"pip install '{exact}'"


def can_run(checks: list[Diagnosis]) -> bool:
    """Whether ``ultra-mq autoquant`` can run."""
    return all(check.state == "ok" for check in checks if check.required)


def next_command(checks: list[Diagnosis]) -> str:
    """The one command to run next: what installs all that is missing, or the first run, by what this machine has."""
    missing = [check.detail.rpartition("; ")[2] for check in checks if check.required and check.state != "ok"]
    installs = [text.removeprefix("pip install ") for text in dict.fromkeys(missing) if text.startswith("pip install ")]
    if installs:
        return f"pip install {' '.join(installs)}"
    has_tensorrt = any(check.name == "TensorRT" and check.state == "ok" for check in checks)
    budget = "--max-drop 0.5 --cost latency" if has_tensorrt else "--bits 9"
    return f"ultra-mq autoquant {budget} yolo11n.pt data=coco128.yaml"


def doctor_table(checks: list[Diagnosis]) -> Table:
    """The diagnosis for the console."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "needed", "detail"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]--[/]", "broken": "[red]!![/]"}
    for check in checks:
        needed = "yes" if check.required else "no"
        table.add_row(marks[check.state], check.name, needed, check.detail.replace("[", r"\["))
    return table


def _import(module: str, package: str, hint: str, *, required: bool = False) -> Diagnosis:
    try:
        with quiet():
            found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        reason = "not installed" if module.startswith(missing) else f"needs '{missing}', which is not installed"
        return Diagnosis(module, "missing", f"{reason}; {hint}", required)
    except Exception as error:
        return Diagnosis(
            module, "broken", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}; {hint}", required
        )
    version = getattr(found, "__version__", None)
    if version is None:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "unknown version"
    return Diagnosis(module, "ok", str(version), required)


def _engine_builder(name: str, target: EngineTarget) -> Diagnosis:
    try:
        runtime = find_runtime(BuildSettings(target=target))
    except BackendError as error:
        return Diagnosis(name, "missing", str(error), False)
    return Diagnosis(name, "ok", f"{runtime.version}{', ' + runtime.gpu['name'] if runtime.gpu else ''}", False)


def _cpu() -> Diagnosis:
    """What 8-bit integers are worth here."""
    flags = cpu_flags()
    if not flags:
        return Diagnosis("CPU", "ok", f"{platform.machine()}; what it can do with INT8 is not known here", False)
    if overflows():
        worth = "no VNNI: INT8 pays on OpenVINO with graphs that are made for it (--runtime openvino), of 7-bit weights"
    elif moves_signed():
        worth = "INT8 is fast on OpenVINO with graphs that are made for it (--runtime openvino)"
    else:
        worth = "INT8 is fast on OpenVINO; BF16 is fast too, so compare"
    return Diagnosis(
        "CPU", "ok", f"{', '.join(flags)}; {worth}; ONNX Runtime gains nothing from INT8 behind SiLU", False
    )


def _gpu() -> Diagnosis:
    if shutil.which("nvidia-smi") is None:
        return Diagnosis("NVIDIA GPU", "missing", "no nvidia-smi; everything but TensorRT runs on the CPU", False)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Diagnosis("NVIDIA GPU", "broken", f"nvidia-smi failed: {error}; check the driver", False)
    return Diagnosis("NVIDIA GPU", "ok", "; ".join(result.stdout.strip().splitlines()), False)
