# SPDX-License-Identifier: AGPL-3.0-or-later
"""A recipe carried out: from weights and data to a run folder with artefacts and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from ultra_mq.backends import CpuRuntime, open_file
from ultra_mq.bench import bench
from ultra_mq.cache import Cache, versions
from ultra_mq.engines import add_engine, find_engine_runtime, time_engines
from ultra_mq.errors import ParityError, RunFolderError
from ultra_mq.evaluate import Accuracy, compare, save_accuracy
from ultra_mq.export import check_graph
from ultra_mq.files import publish
from ultra_mq.plan import PrecisionPlan, check_plan, save_plan
from ultra_mq.recipe import Recipe, Variant, save_recipe
from ultra_mq.report import write_report
from ultra_mq.results import ACCURACY, ENGINE_SUFFIX, Report, VariantResult
from ultra_mq.search import search
from ultra_mq.session import Session, open_session, require_detection
from ultra_mq.stages import (
    evaluate_onnx,
    graph_of,
    make_artefacts,
    make_fp16,
    make_fp32,
    make_ptq,
    measure_parity,
    plan_variant,
    score_layers,
    solve_bits,
)
from ultra_mq.targets import find_target

OUTLOOK_BITS = (8.0, 8.5, 9.0, 9.5, 10.0, 11.0, 12.0, 14.0)
TENSORRT_HINT = "TensorRT engines, which need an NVIDIA GPU; on that machine: ultra-mq build {onnx}"


def run_recipe(recipe: Recipe, cache: Cache | None = None, plans: Mapping[str, PrecisionPlan] | None = None) -> Report:
    """Carry out a recipe from weights to report.

    Args:
        recipe: What to do.
        cache: Cache to use; the default one where it is None.
        plans: Variant name to a plan to carry out in place of searching one.

    Returns:
        The report; its files are in ``report.folder``.

    Raises:
        UltraMQError: The input cannot be used; nothing was written to the run folder then, or every file in it is
            whole.
        ParityError: Torch and ONNX parted; the report is written and shows where.
    """
    session = open_session(recipe, cache)
    require_detection(session)
    plans = plans or {}
    for plan in plans.values():
        check_plan(plan, session.model)
    if recipe.runtime != "auto":
        find_target(session)  # a runtime that is not there is said before work starts
    runtime, not_built = find_engine_runtime(recipe)
    folder = make_run_folder(recipe)
    save_recipe(recipe, folder / "recipe.yaml")
    results = [_reference(session, folder)]
    for variant in recipe.variants:
        result = _variant(session, folder, variant, results[0].accuracy, plans.get(variant.name))
        results.append(add_engine(session, folder, result, results[0].accuracy, runtime))
    if runtime is None or runtime.target == "rtx":
        not_built.append(TENSORRT_HINT.format(onnx=folder / results[-1].onnx))
    results = _time_all(session, folder, results)
    results, engine_bench = time_engines(session, results)
    report = Report(
        folder=folder,
        recipe=recipe,
        variants=tuple(results),
        sensitivity=score_layers(session) if _needs_scores(recipe, plans) else None,
        warnings=tuple(session.warnings),
        not_built=tuple(not_built),
        engine_bench=engine_bench,
        versions=versions(),
        seconds=session.seconds,
    )
    report = _add_outlook(session, report)
    for result in report.variants:
        save_accuracy(result.accuracy, folder / ACCURACY / result.name)
        if result.engine_accuracy:
            save_accuracy(result.engine_accuracy, folder / ACCURACY / f"{result.name}{ENGINE_SUFFIX}")
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


def _needs_scores(recipe: Recipe, plans: Mapping[str, PrecisionPlan]) -> bool:
    return any(variant.precision == "mixed" and variant.name not in plans for variant in recipe.variants)


def _reference(session: Session, folder: Path) -> VariantResult:
    path = publish(make_fp32(session), folder / f"{session.model.stem}-fp32.onnx")
    accuracy = evaluate_onnx(session, path, "Evaluating FP32")
    return VariantResult("fp32", path.name, None, path.stat().st_size, accuracy)


def _variant(
    session: Session, run: Path, variant: Variant, reference: Accuracy, plan: PrecisionPlan | None
) -> VariantResult:
    recipe = session.recipe
    folder = run if len(recipe.variants) == 1 else run / variant.name
    if variant.precision == "ptq":
        return _ptq_variant(session, run, folder, variant, reference)
    found = search(session, variant) if plan is None and variant.budgets else None
    if found:
        for line in found.findings:
            session.warn(f"{variant.name}: {line}")
        for step in found.steps:
            save_plan(step.plan, folder / "search" / f"{step.name.replace(' ', '-')}.yaml")
    plan = found.chosen.plan if found else plan or plan_variant(session, variant)
    save_plan(plan, folder / "plan.yaml")
    entry = make_artefacts(session, plan)
    fp16 = publish(make_fp16(session, plan), folder / f"{session.model.stem}-{variant.name}-fp16.onnx")
    for fault in check_graph(fp16).faults:
        session.warn(f"{variant.name}: {fault.message}.")
    onnx, parity = fp16, None
    # A CPU has no use for FP16: there the model of a search that quantizes nothing is the FP32 one.
    if plan.quantized or (found and found.runtime != "tensorrt"):
        onnx = publish(graph_of(session, plan), folder / f"{session.model.stem}-{variant.name}.onnx")
        if (entry / "model.pt").exists():
            publish(entry / "model.pt", folder / f"{session.model.stem}-{variant.name}.pt")
    accuracy = compare(evaluate_onnx(session, onnx, f"Evaluating {variant.name}"), reference.detections)
    if recipe.evaluation.parity and (entry / "model.pt").exists():
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
        search=found,
    )


def _ptq_variant(session: Session, run: Path, folder: Path, variant: Variant, reference: Accuracy) -> VariantResult:
    entry = make_ptq(session, run / f"{session.model.stem}-fp32.onnx", variant.method)
    onnx = publish(entry / "ptq.onnx", folder / f"{session.model.stem}-{variant.name}.onnx")
    accuracy = compare(evaluate_onnx(session, onnx, f"Evaluating {variant.name}"), reference.detections)
    return VariantResult(variant.name, str(onnx.relative_to(run)), None, onnx.stat().st_size, accuracy)


def _time_all(session: Session, folder: Path, results: list[VariantResult]) -> list[VariantResult]:
    settings = session.recipe.bench
    if not settings.rounds or session.recipe.runtime == "tensorrt":
        return results
    with session.stage("Time"):
        runtime: CpuRuntime = "openvino" if session.recipe.runtime == "openvino" else "onnxruntime"
        open_files = {
            result.name: open_file(folder / result.onnx, threads=settings.threads, runtime=runtime)
            for result in results
        }
        latencies = bench(open_files, settings.rounds, settings.runs).latencies
    return [replace(result, latency=latencies.get(result.name)) for result in results]


def _add_outlook(session: Session, report: Report) -> Report:
    if report.sensitivity is None:
        return report
    everything = sum(min(by_format.values()) for by_format in report.sensitivity.scores.values())
    rows = []
    for bits in OUTLOOK_BITS:
        plan = solve_bits(session, report.sensitivity, bits)
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
