# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where a model will run: its plans opened, proven and timed on the runtime they are meant for."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from ultra_mq.backends import Backend, CpuRuntime, open_file
from ultra_mq.backends.engine import Engine, Runtime, choose_runtime, load_engine
from ultra_mq.bench import Bench, bench
from ultra_mq.build import build
from ultra_mq.errors import BackendError
from ultra_mq.evaluate import Accuracy, evaluate, load_accuracy, save_accuracy
from ultra_mq.plan import PrecisionPlan
from ultra_mq.session import Session
from ultra_mq.stages import evaluate_onnx, graph_of, make_fp16

ENGINE = "model.engine"
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


def find_target(session: Session) -> Target:
    """The recipe's target; ``auto`` is TensorRT where it works, else ONNX Runtime on the CPU.

    Raises:
        BackendError: The target cannot be used here.
    """
    name = session.recipe.runtime
    if name == "auto" or name == "tensorrt":  # noqa: PLR1714 (mypy narrows this form alone)
        try:
            engine = choose_runtime("tensorrt", session.recipe.engine.build_settings)
            about = {"version": engine.version, "device": str((engine.gpu or {}).get("name", "unknown"))}
            return Target("tensorrt", 0, about, engine)
        except BackendError:
            if name == "tensorrt":
                raise
            name = "onnxruntime"
    return host_target(session, name)


def host_target(session: Session, name: CpuRuntime = "onnxruntime") -> Target:
    """A runtime on this machine's CPU."""
    from ultralytics.utils.torch_utils import get_cpu_info

    return Target(name, session.recipe.bench.threads, {"version": _version(name), "device": get_cpu_info()})


def open_plan(session: Session, plan: PrecisionPlan, target: Target) -> Backend:
    """Open a plan on the target, built where it is not in the cache.

    Raises:
        BackendError: The runtime refuses the model.
    """
    if target.engine is None:
        return open_file(graph_of(session, plan), threads=target.threads, runtime=cast(CpuRuntime, target.name))
    return open_file(engine_of(session, plan, target.engine) / ENGINE, session.recipe.engine.trt_python)


def engine_of(session: Session, plan: PrecisionPlan, runtime: Runtime) -> Path:
    """Folder with the engine of a plan; a strongly typed runtime needs the FP16 graph too."""
    return make_engine(session, graph_of(session, plan), _typed(session, plan, runtime), runtime)


def described_engine(session: Session, plan: PrecisionPlan, runtime: Runtime) -> Engine:
    """What is known of the engine of a plan."""
    return load_engine(engine_of(session, plan, runtime) / ENGINE)


def make_engine(session: Session, source: Path, typed: Path | None, runtime: Runtime) -> Path:
    """Folder with an engine, its description and, after a repair, the graph it was built from.

    Args:
        session: The run.
        source: FP32 or Q/DQ graph.
        typed: The same with FP16 around it, where it was made.
        runtime: What to build with.
    """
    recipe = session.recipe.engine
    settings = recipe.build_settings(runtime.target)
    depends_on = {
        "onnx": hashlib.sha256(source.read_bytes()).hexdigest(),
        "settings": asdict(settings),
        "repairs": recipe.repairs,
        "runtime": asdict(runtime),
    }

    def make(folder: Path) -> None:
        with session.stage("Build"):
            build(
                source,
                folder / ENGINE,
                settings,
                runtime=runtime,
                typed=typed,
                image=next(iter(session.calibration_batches(1)))["img"].cpu().numpy(),
                max_repairs=recipe.repairs,
                timing_caches=session.cache.root / "timing",
            )

    return session.cache.folder("engine", depends_on, make)


def evaluate_plan(session: Session, plan: PrecisionPlan, target: Target, label: str) -> Accuracy:
    """Accuracy of a plan on the target, from the cache where it is known."""
    if target.name == "onnxruntime":
        return evaluate_onnx(session, graph_of(session, plan), label)
    with closing(open_plan(session, plan, target)) as backend:

        def make(entry: Path) -> None:
            with session.stage("Evaluate"):
                save_accuracy(evaluate(backend, session.data, label=label), entry)

        digest = hashlib.sha256(backend.path.read_bytes()).hexdigest()
        depends_on = {**session.evaluation_key, "file": digest, "target": target.about, "runtime": target.name}
        return load_accuracy(session.cache.folder("accuracy", depends_on, make))


def time_plans(session: Session, plans: Mapping[str, PrecisionPlan], target: Target) -> Bench:
    """Time plans side by side on the target, the first one as the reference; what cannot be opened is left out."""
    settings = session.recipe.bench
    runs = settings.engine_runs if target.engine else settings.runs
    with ExitStack() as stack:
        backends: dict[str, Backend] = {}
        for name, plan in plans.items():
            try:
                backends[name] = stack.enter_context(closing(open_plan(session, plan, target)))
            except BackendError as error:  # noqa: PERF203
                session.warn(f"{name}: {error}")
        with session.stage("Time"):
            return bench(backends, max(settings.rounds, 1), runs)


def _typed(session: Session, plan: PrecisionPlan, runtime: Runtime) -> Path | None:
    return make_fp16(session, plan) if runtime.strongly_typed else None


def _version(name: str) -> str:
    for distribution in DISTRIBUTIONS[name]:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:  # noqa: PERF203
            continue
    raise BackendError(f"{name} is not installed. Install it with: pip install 'ultra-mq[{name}]'")
