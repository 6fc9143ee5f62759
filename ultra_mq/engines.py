# SPDX-License-Identifier: AGPL-3.0-or-later
"""The engine of each variant of a run: built or taken from the cache, proven, and timed beside the others."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from ultra_mq.backends.engine import Engine, Runtime, choose_runtime, load_engine, save_engine
from ultra_mq.backends.tensorrt import TensorRt
from ultra_mq.bench import Bench, bench
from ultra_mq.errors import BackendError
from ultra_mq.evaluate import Accuracy, compare, evaluate
from ultra_mq.files import publish
from ultra_mq.plan import save_plan
from ultra_mq.recipe import Recipe
from ultra_mq.repair import repair_plan
from ultra_mq.results import VariantResult
from ultra_mq.session import Session
from ultra_mq.stages import evaluate_onnx
from ultra_mq.targets import ENGINE, make_engine


def find_engine_runtime(recipe: Recipe) -> tuple[Runtime | None, list[str]]:
    """The runtime that a recipe's engines are built with, and why there is none.

    Raises:
        BackendError: The recipe names a target that cannot be used here.
    """
    target = recipe.engine.target
    if target == "none":
        return None, []
    try:
        return choose_runtime(target, recipe.engine.build_settings), []
    except BackendError as error:
        if target != "auto":
            raise
        return None, [f"Engines: {error}"]


def add_engine(
    session: Session, run: Path, result: VariantResult, reference: Accuracy, runtime: Runtime | None
) -> VariantResult:
    """Build a variant's engine and, with TensorRT, run it; what fails stands in the result and the run goes on.

    Args:
        session: The run.
        run: Run folder.
        result: The variant, with its graphs in the run folder.
        reference: Accuracy of the float model.
        runtime: What to build with; None builds nothing.
    """
    if runtime is None:
        return result
    folder = (run / result.onnx).parent
    stem = f"{session.model.stem}-{result.name}"
    suffix = ".rtx.engine" if runtime.target == "rtx" else ".engine"
    try:
        source = run / (result.build_from or result.onnx)
        entry = make_engine(session, source, run / result.onnx_fp16 if result.onnx_fp16 else None, runtime)
        path = publish(entry / ENGINE, folder / f"{stem}{suffix}")
        engine = replace(load_engine(entry / ENGINE), path=path)
        if engine.repaired:
            onnx = publish(entry / engine.onnx, folder / f"{stem}-repaired.onnx")
            engine = replace(engine, onnx=onnx.name)
            result = _with_repair(session, run, result, engine, onnx, reference)
        save_engine(engine)
        result = replace(result, engine=engine)
        if runtime.target == "tensorrt":
            result = _prove(session, result, engine, reference)
    except BackendError as error:
        session.warn(f"{result.name}: {error}")
        result = replace(result, engine_error=str(error))
    return result


def time_engines(session: Session, results: list[VariantResult]) -> tuple[list[VariantResult], Bench | None]:
    """Time all TensorRT engines side by side, against FP16 where the recipe has it."""
    settings = session.recipe.bench
    engines = {r.name: r.engine.path for r in results if r.engine_accuracy and r.engine}
    if not engines or not settings.rounds:
        return results, None
    fp16 = next((v.name for v in session.recipe.variants if v.precision == "fp16"), None)
    with session.stage("Time engines"), ExitStack() as stack:
        backends = {}
        for name, path in engines.items():
            try:
                backends[name] = stack.enter_context(TensorRt(path, session.recipe.engine.trt_python))
            except BackendError as error:  # noqa: PERF203
                session.warn(f"{name}: {error}")
        measured = bench(backends, settings.rounds, settings.engine_runs, reference=fp16)
    for reason in measured.noise:
        session.warn(f"The timing of the engines is noisy: {reason}.")
    results = [
        replace(
            result,
            engine_latency=measured.latencies.get(result.name),
            engine_error=result.engine_error or measured.errors.get(result.name),
        )
        for result in results
    ]
    return results, measured


def _with_repair(
    session: Session, run: Path, result: VariantResult, engine: Engine, onnx: Path, reference: Accuracy
) -> VariantResult:
    session.warn(f"{result.name}: {', '.join(engine.repaired)} left in float, TensorRT cannot build them in INT8.")
    plan = repair_plan(result.plan, engine.repaired, session.model) if result.plan else None
    if plan:
        save_plan(plan, onnx.parent / "plan.yaml")
    accuracy = compare(evaluate_onnx(session, onnx, f"Evaluating {onnx.name}"), reference.detections)
    return replace(result, plan=plan, onnx=str(onnx.relative_to(run)), accuracy=accuracy)


def _prove(session: Session, result: VariantResult, engine: Engine, reference: Accuracy) -> VariantResult:
    """Run the engine through the validator, and hold it against its ONNX file."""
    settings = session.recipe.engine
    with session.stage("Evaluate"), closing(TensorRt(engine.path, settings.trt_python)) as backend:
        found = evaluate(backend, session.data, label=f"Evaluating {engine.path.name}")
    agreement = compare(found, result.accuracy.detections).agreement or 0.0
    if agreement < settings.min_agreement:
        session.warn(
            f"{result.name}: the engine agrees with its ONNX file at {agreement:.3f} only; TensorRT computes something "
            f"else than the graph says. Do not deploy this engine."
        )
    return replace(result, engine_accuracy=compare(found, reference.detections), engine_agreement=agreement)
