# SPDX-License-Identifier: AGPL-3.0-or-later
"""The engine of each variant of a run: built or taken from the cache, proven, and timed beside the others."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from ultra_mq.core import BackendError, publish
from ultra_mq.measure import Accuracy, Bench, compare, evaluate, time_in_turns
from ultra_mq.plan import repair_plan, save_plan
from ultra_mq.prepare import gpu_index
from ultra_mq.report import VariantResult
from ultra_mq.runtimes import Engine, Runtime, TensorRt, choose_runtime, load_engine, save_engine
from ultra_mq.search import learn_latency
from ultra_mq.session import ENGINE, Artefacts, Session, evaluate_file, float_artefacts, host_target, prices_of

REFERENCE = "fp16 (reference)"
"""Name of an FP16 engine that is built only to have something to compare with."""


def find_engine_runtime(session: Session) -> tuple[Runtime | None, list[str]]:
    """The runtime that a recipe's engines are built with, and why there is none.

    Raises:
        BackendError: The recipe names a target that cannot be used here.
    """
    target = session.recipe.engine.target
    if target == "none":
        return None, []
    if session.unsigned:
        words = "engines take no unsigned activations, which OpenVINO needs; run again with --runtime auto"
        if target != "auto":
            raise BackendError(f"engine.target={target} and runtime=openvino exclude each other: {words}.")
        return None, [f"Engines: {words}"]
    try:
        return choose_runtime(target, session.engine_runtime), []
    except BackendError:
        if target != "auto":
            raise
        return None, []  # said once with its remedy, and by ultra-mq doctor in full


def add_engine(
    session: Session,
    run: Path,
    result: VariantResult,
    artefacts: Artefacts,
    reference: Accuracy,
    runtime: Runtime | None,
) -> VariantResult:
    """Build a variant's engine and, with TensorRT, run it; what fails stands in the result and the run goes on.

    Args:
        session: The run.
        run: Run folder.
        result: The variant, with its graphs in the run folder.
        artefacts: What it was made into.
        reference: Accuracy of the float model.
        runtime: What to build with; None builds nothing.
    """
    if runtime is None:
        return result
    folder = (run / result.onnx).parent
    stem = f"{session.model.stem}-{result.name}"
    suffix = ".rtx.engine" if runtime.target == "rtx" else ".engine"
    try:
        cached = load_engine(artefacts.engine(runtime) / ENGINE)
        path = publish(cached.path, folder / f"{stem}{suffix}")
        source = result.onnx_fp16 if runtime.strongly_typed else None
        engine = replace(cached, path=path, onnx=Path(source or result.build_from or result.onnx).name)
        if cached.repaired:
            onnx = publish(cached.path.with_name(cached.onnx), folder / f"{stem}-repaired.onnx")
            engine = replace(engine, onnx=onnx.name)
            result = _with_repair(session, run, result, cached.repaired, onnx, reference)
        save_engine(engine)
        result = replace(result, engine=engine)
        if runtime.target == "tensorrt":
            result = _prove(session, result, engine, reference)
    except BackendError as error:
        session.warn(f"{result.name}: {error}")
        result = replace(result, engine_error=str(error))
    return result


def time_engines(
    session: Session, results: list[VariantResult], runtime: Runtime | None
) -> tuple[list[VariantResult], Bench | None]:
    """Time all TensorRT engines side by side, against FP16: a variant's, or one that is built for it.

    Args:
        session: The run.
        results: All variants.
        runtime: What the engines were built with.
    """
    recipe = session.recipe
    engines = {r.name: r.engine.path for r in results if r.engine_accuracy and r.engine}
    if runtime is None or not engines or not recipe.bench.rounds:
        return results, None
    fp16 = next((v.name for v in recipe.variants if v.precision == "fp16"), None)
    if fp16 is None and recipe.engine.reference:
        try:
            engines[REFERENCE] = float_artefacts(session).engine(runtime) / ENGINE
            fp16 = REFERENCE
        except BackendError as error:
            session.warn(f"There is no speed-up, because the FP16 engine to compare with cannot be built: {error}")
    with session.stage("Time engines"), ExitStack() as stack:
        backends = {}
        for name, path in engines.items():
            try:
                opened = TensorRt(path, recipe.engine.trt_python, device=gpu_index(recipe.device))
                backends[name] = stack.enter_context(opened)
            except BackendError as error:  # noqa: PERF203
                session.warn(f"{name}: {error}")
        measured = time_in_turns(backends, recipe.bench.rounds, recipe.bench.engine_runs, fp16)
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
    session: Session, run: Path, result: VariantResult, repaired: tuple[str, ...], onnx: Path, reference: Accuracy
) -> VariantResult:
    session.warn(f"{result.name}: {', '.join(repaired)} left in float, TensorRT cannot build them in INT8.")
    plan = result.plan
    if plan:
        latency = learn_latency(session, session.target) if plan.cost_model == "latency" else None
        plan = repair_plan(plan, repaired, session.model, prices_of(session, plan.cost_model, latency))
        save_plan(plan, onnx.parent / "plan.yaml")
    label = f"Evaluating {onnx.name}"
    accuracy = compare(evaluate_file(session, onnx, label, host_target(session.recipe)), reference.predictions)
    return replace(result, plan=plan, onnx=str(onnx.relative_to(run)), accuracy=accuracy)


def _prove(session: Session, result: VariantResult, engine: Engine, reference: Accuracy) -> VariantResult:
    """Run the engine through the validator, and hold it against its ONNX file."""
    recipe = session.recipe
    with (
        session.stage("Evaluate"),
        closing(TensorRt(engine.path, recipe.engine.trt_python, device=gpu_index(recipe.device))) as backend,
    ):
        accuracy = evaluate(backend, session.data, label=f"Evaluating {engine.path.name}")
    agreement = compare(accuracy, result.accuracy.predictions).agreement or 0.0
    if agreement < recipe.engine.min_agreement:
        session.warn(
            f"{result.name}: the engine agrees with its ONNX file at {agreement:.3f} only; TensorRT computes something "
            f"else than the graph says. Do not deploy this engine."
        )
    return replace(result, engine_accuracy=compare(accuracy, reference.predictions), engine_agreement=agreement)
