# SPDX-License-Identifier: AGPL-3.0-or-later
"""A recipe carried out: from weights and data to a run folder with artefacts and a report."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from ultra_mq.backends.onnxruntime import OnnxRuntime
from ultra_mq.backends.tensorrt import Runtime, TensorRt, choose_runtime
from ultra_mq.bench import Bench, bench
from ultra_mq.build import build
from ultra_mq.cache import Cache, versions
from ultra_mq.cost import layer_sizes
from ultra_mq.errors import BackendError, ParityError, RunFolderError
from ultra_mq.evaluate import Accuracy, compare, evaluate
from ultra_mq.export import check_graph, export_onnx
from ultra_mq.files import atomic_path
from ultra_mq.plan import PrecisionPlan, check_plan, save_plan, solve_plan
from ultra_mq.recipe import Recipe, Variant, save_recipe
from ultra_mq.repair import repair_plan
from ultra_mq.report import write_report
from ultra_mq.results import Report, VariantResult
from ultra_mq.session import (
    Session,
    evaluate_onnx,
    graph_key,
    make_artefacts,
    make_ptq,
    measure_parity,
    open_session,
    plan_variant,
    score_layers,
)

OUTLOOK_BITS = (8.0, 8.5, 9.0, 9.5, 10.0, 11.0, 12.0, 14.0)
TENSORRT_HINT = "TensorRT engines, which need an NVIDIA GPU; on that machine: ultra-mq build {onnx}"


def run_recipe(recipe: Recipe, cache: Cache | None = None, plan: PrecisionPlan | None = None) -> Report:
    """Carry out a recipe from weights to report.

    Args:
        recipe: What to do.
        cache: Cache to use; the default one where it is None.
        plan: A plan to apply in place of solving the recipe's single variant.

    Returns:
        The report; its files are in ``report.folder``.

    Raises:
        UltraMQError: The input cannot be used; nothing was written to the run folder then, or every file in it is
            whole.
        ParityError: Torch and ONNX parted; the report is written and shows where.
    """
    session = open_session(recipe, cache)
    if plan is not None:
        check_plan(plan, session.model)
    folder = make_run_folder(recipe)
    save_recipe(recipe, folder / "recipe.yaml")
    runtime, not_built = _find_runtime(recipe)
    results = [_reference(session, folder)]
    for variant in recipe.variants:
        result = _variant(session, folder, variant, results[0].accuracy, plan)
        results.append(_add_engine(session, folder, result, results[0].accuracy, runtime))
    if runtime is None or runtime.target == "rtx":
        not_built.append(TENSORRT_HINT.format(onnx=folder / results[-1].onnx))
    results = _time_all(session, folder, results)
    results, engine_bench = _time_engines(session, folder, results)
    report = Report(
        folder=folder,
        recipe=recipe,
        variants=tuple(results),
        sensitivity=score_layers(session) if _needs_scores(recipe, plan) else None,
        warnings=tuple(session.warnings),
        not_built=tuple(not_built),
        engine_bench=engine_bench,
        versions=versions(),
        seconds=session.seconds,
    )
    report = _add_outlook(session, report)
    write_report(report)
    _fail_on_parity(report)
    return report


def make_run_folder(recipe: Recipe) -> Path:
    """Make the run folder by Ultralytics' own rule, ``runs/detect/autoquant``, then ``autoquant-2``.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    from ultralytics.cfg import get_save_dir

    name = recipe.name or "autoquant"
    settings = SimpleNamespace(
        project=recipe.project, task="detect", mode="autoquant", name=name, exist_ok=recipe.exist_ok
    )
    folder = Path(get_save_dir(settings))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"Cannot make the run folder '{folder}': {error.strerror or error}. Choose a writable one with project=..."
        ) from error
    return folder


def _needs_scores(recipe: Recipe, plan: PrecisionPlan | None) -> bool:
    return plan is None and any(variant.precision == "mixed" for variant in recipe.variants)


def _reference(session: Session, folder: Path) -> VariantResult:
    model, imgsz = session.model, session.recipe.imgsz

    def make(entry: Path) -> None:
        with session.stage("Export FP32"):
            export_onnx(model.module, entry / "fp32.onnx", imgsz)

    entry = session.cache.folder("fp32", graph_key(session), make)
    path = _publish(entry / "fp32.onnx", folder / f"{model.stem}-fp32.onnx")
    accuracy = evaluate_onnx(session, path, "Evaluating FP32")
    return VariantResult("fp32", path.name, None, path.stat().st_size, accuracy)


def _variant(
    session: Session, run: Path, variant: Variant, reference: Accuracy, plan: PrecisionPlan | None
) -> VariantResult:
    recipe = session.recipe
    folder = run if len(recipe.variants) == 1 else run / variant.name
    if variant.precision == "ptq":
        return _ptq_variant(session, run, folder, variant, reference)
    plan = plan or plan_variant(session, variant)
    save_plan(plan, folder / "plan.yaml")
    entry = make_artefacts(session, plan)
    fp16 = _publish(entry / "fp16.onnx", folder / f"{session.model.stem}-{variant.name}-fp16.onnx")
    for fault in check_graph(fp16).faults:
        session.warn(f"{variant.name}: {fault.message}.")
    onnx, parity = fp16, None
    if plan.quantized:
        onnx = _publish(entry / "qdq.onnx", folder / f"{session.model.stem}-{variant.name}.onnx")
        _publish(entry / "model.pt", folder / f"{session.model.stem}-{variant.name}.pt")
    accuracy = compare(evaluate_onnx(session, onnx, f"Evaluating {variant.name}"), reference.detections)
    if plan.quantized and recipe.evaluation.parity:
        parity = measure_parity(session, plan, entry, accuracy, reference)
    return VariantResult(
        name=variant.name,
        onnx=str(onnx.relative_to(run)),
        onnx_fp16=str(fp16.relative_to(run)),
        size_bytes=onnx.stat().st_size,
        accuracy=accuracy,
        plan=plan,
        parity=parity,
        build_from=None if plan.quantized else f"{session.model.stem}-fp32.onnx",
    )


def _ptq_variant(session: Session, run: Path, folder: Path, variant: Variant, reference: Accuracy) -> VariantResult:
    entry = make_ptq(session, run / f"{session.model.stem}-fp32.onnx", variant.method)
    onnx = _publish(entry / "ptq.onnx", folder / f"{session.model.stem}-{variant.name}.onnx")
    accuracy = compare(evaluate_onnx(session, onnx, f"Evaluating {variant.name}"), reference.detections)
    return VariantResult(variant.name, str(onnx.relative_to(run)), None, onnx.stat().st_size, accuracy)


def _find_runtime(recipe: Recipe) -> tuple[Runtime | None, list[str]]:
    target = recipe.engine.target
    if target == "none":
        return None, []
    try:
        return choose_runtime(target, recipe.engine.build_settings), []
    except BackendError as error:
        if target != "auto":
            raise
        return None, [f"Engines: {error}"]


def _add_engine(
    session: Session, run: Path, result: VariantResult, reference: Accuracy, runtime: Runtime | None
) -> VariantResult:
    """Build a variant's engine and, with TensorRT, run it; what fails stands in the result and the run goes on."""
    if runtime is None:
        return result
    settings = session.recipe.engine.build_settings(runtime.target)
    source = run / result.onnx
    path = source.with_name(f"{session.model.stem}-{result.name}{'.rtx' if runtime.target == 'rtx' else ''}.engine")
    try:
        with session.stage("Build"):
            built = build(
                run / (result.build_from or result.onnx),
                path,
                settings,
                runtime=runtime,
                typed=run / result.onnx_fp16 if result.onnx_fp16 else None,
                image=next(iter(session.calibration_batches(1)))["img"].cpu().numpy(),
                max_repairs=session.recipe.engine.repairs,
                timing_caches=session.cache.root / "timing",
            )
        result = replace(result, engine=built.engine)
        if built.engine.repaired:
            session.warn(
                f"{result.name}: {', '.join(built.engine.repaired)} left in float, TensorRT cannot build them."
            )
            plan = repair_plan(result.plan, built.engine.repaired, session.model) if result.plan else None
            if plan:
                save_plan(plan, source.parent / "plan.yaml")
            accuracy = compare(
                evaluate_onnx(session, built.onnx, f"Evaluating {built.onnx.name}"), reference.detections
            )
            result = replace(result, plan=plan, onnx=str(built.onnx.relative_to(run)), accuracy=accuracy)
        if runtime.target == "tensorrt":
            with session.stage("Evaluate"), closing(TensorRt(path, settings.python)) as engine:
                found = evaluate(engine, session.data, label=f"Evaluating {path.name}")
            agreement = compare(found, result.accuracy.detections).agreement or 0.0
            result = replace(result, engine_accuracy=compare(found, reference.detections), engine_agreement=agreement)
            if agreement < session.recipe.engine.min_agreement:
                session.warn(
                    f"{result.name}: the engine agrees with its ONNX file at {agreement:.3f} only; TensorRT computes "
                    f"something else than the graph says. Do not deploy this engine."
                )
    except BackendError as error:
        session.warn(f"{result.name}: {error}")
        result = replace(result, engine_error=str(error))
    return result


def _time_all(session: Session, folder: Path, results: list[VariantResult]) -> list[VariantResult]:
    settings = session.recipe.bench
    if not settings.rounds:
        return results
    with session.stage("Time"):
        open_files = {result.name: OnnxRuntime(folder / result.onnx, settings.threads) for result in results}
        latencies = bench(open_files, settings.rounds, settings.runs).latencies
    return [replace(result, latency=latencies.get(result.name)) for result in results]


def _time_engines(
    session: Session, folder: Path, results: list[VariantResult]
) -> tuple[list[VariantResult], Bench | None]:
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


def _add_outlook(session: Session, report: Report) -> Report:
    if report.sensitivity is None:
        return report
    sizes = layer_sizes(session.model, session.recipe.cost_model, session.recipe.imgsz)
    everything = sum(min(by_format.values()) for by_format in report.sensitivity.scores.values())
    rows = []
    for bits in OUTLOOK_BITS:
        plan = solve_plan(session.model, report.sensitivity, sizes, bits, cost_model=session.recipe.cost_model)
        loss = sum(layer.score or 0.0 for layer in plan.layers)
        rows.append((bits, len(plan.quantized), 100 * loss / everything))
    return replace(report, outlook=tuple(rows))


def _fail_on_parity(report: Report) -> None:
    for variant in report.variants:
        if variant.parity and not variant.parity.holds:
            raise ParityError(
                f"'{variant.name}' is not the same model in torch and in ONNX: they part by {variant.parity.gap:.4f}, "
                f"the limit is {variant.parity.limit:g}. See 'Parity' in '{report.folder / 'report.md'}', and do not "
                f"deploy this file."
            )


def _publish(source: Path, target: Path) -> Path:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return target
