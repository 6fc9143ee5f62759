# SPDX-License-Identifier: AGPL-3.0-or-later
"""A recipe carried out: from weights and data to a run folder with artefacts and a report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from ultra_mq.core import BackendError, Cache, ParityError, ReportError, RunFolderError, publish, versions
from ultra_mq.graph import lint_graph, load_graph
from ultra_mq.jobs.engine_results import add_engine, find_engine_runtime, time_engines
from ultra_mq.measure import Accuracy, bootstrap_classes, compare, save_accuracy, time_in_turns
from ultra_mq.plan import PrecisionPlan, save_plan, settle_plan
from ultra_mq.report import (
    ACCURACY,
    ENGINE_FOLDER,
    Report,
    VariantResult,
    draw_gallery,
    log_report,
    recommend,
    variant_of_interest,
    write_report,
)
from ultra_mq.runtimes import CpuRuntime, keep_builders, open_file
from ultra_mq.search import search
from ultra_mq.session import (
    Artefacts,
    Forecast,
    Metric,
    Recipe,
    Session,
    Variant,
    evaluate_file,
    expect_stages,
    float_artefacts,
    host_target,
    open_choices,
    open_session,
    plan_variant,
    prices_of,
    ptq_artefacts,
    save_recipe,
    score_layers,
    solve_bits,
)

OUTLOOK_BITS = (8.0, 8.5, 9.0, 9.5, 10.0, 11.0, 12.0, 14.0)
TENSORRT_HINT = (
    "TensorRT engines, which need TensorRT and an NVIDIA GPU (see ultra-mq doctor); on that machine: "
    "ultra-mq build {onnx}"
)


@keep_builders()
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
    recipe = session.recipe
    settled = {name: settle(session, plan) for name, plan in (plans or {}).items()}
    if recipe.runtime != "auto":
        _ = session.target  # a runtime that is not there is said before work starts
    runtime, not_built = find_engine_runtime(session)
    target = runtime.target if runtime else None
    stages = expect_stages(recipe, len(session.data.evaluation.images), len(session.model.quantizable), target)
    session.forecast = Forecast(stages) if stages else None
    folder = make_run_folder(recipe, session.model.task)
    save_recipe(recipe, folder / "recipe.yaml")
    results = [_reference(session, folder)]
    for variant in recipe.variants:
        result, artefacts = _variant(session, folder, variant, results[0].accuracy, settled.get(variant.name))
        results.append(add_engine(session, folder, result, artefacts, results[0].accuracy, runtime))
    if not session.unsigned and target != "tensorrt":
        not_built.append(TENSORRT_HINT.format(onnx=shlex.quote(str(folder / results[-1].onnx))))
    results = _time_on_cpu(session, folder, results)
    results, engine_bench = time_engines(session, results, runtime)
    report = Report(
        folder=folder,
        recipe=recipe,
        variants=tuple(results),
        sensitivity=score_layers(session) if _needs_scores(recipe, settled) else None,
        warnings=tuple(session.warnings),
        not_built=tuple(not_built),
        engine_bench=engine_bench,
        versions=versions(),
        seconds=session.seconds,
    )
    report = _add_pictures(session, _add_outlook(session, _add_losses(report, session.model.names)))
    for result in report.variants:
        save_accuracy(result.accuracy, folder / ACCURACY / result.name)
        if result.engine_accuracy:
            save_accuracy(result.engine_accuracy, folder / ACCURACY / result.name / ENGINE_FOLDER)
    write_report(report)
    log_report(report)
    _fail_on_parity(report)
    return report


def settle(session: Session, plan: PrecisionPlan) -> PrecisionPlan:
    """A plan from a file with the figures of what it says now, and a word where it was edited.

    Raises:
        PlanError: It does not fit the model.
    """
    settled = settle_plan(plan, session.model, prices_of(session, plan.cost_model))
    settled = replace(settled, placement=session.recipe.placement)
    edited = [layer.name for layer, before in zip(settled.layers, plan.layers, strict=True) if layer.why != before.why]
    if edited:
        session.warn(
            f"{len(edited)} layers of the plan were edited ({', '.join(edited[:3])}{', ...' if edited[3:] else ''}): "
            f"it has {settled.bits:.2f} bits now, its file says {plan.bits:.2f}."
        )
    return settled


def make_run_folder(recipe: Recipe, task: str) -> Path:
    """Make the run folder by Ultralytics' own rule, ``runs/detect/autoquant``, then ``autoquant-2``.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    from ultralytics.cfg import get_save_dir

    name = recipe.name or "autoquant"
    settings = SimpleNamespace(project=recipe.project, task=task, mode="autoquant", name=name, exist_ok=recipe.exist_ok)
    while True:
        folder = Path(get_save_dir(settings))
        try:
            folder.mkdir(parents=True, exist_ok=recipe.exist_ok)
        except FileExistsError:
            if folder.is_dir() and not recipe.exist_ok:
                continue  # another run took the name since it was asked for
            raise RunFolderError(f"'{folder}' is a file. Choose another place with project=... or name=...") from None
        except OSError as error:
            raise RunFolderError(
                f"Cannot make the run folder '{folder}': {error.strerror or error}. "
                f"Choose a writable one with project=..."
            ) from error
        return folder


def _needs_scores(recipe: Recipe, plans: Mapping[str, PrecisionPlan]) -> bool:
    return any(variant.precision == "mixed" and variant.name not in plans for variant in recipe.variants)


def _reference(session: Session, folder: Path) -> VariantResult:
    made = float_artefacts(session)
    path = publish(made.graph, folder / f"{session.model.stem}-fp32.onnx")
    return VariantResult("fp32", path.name, None, path.stat().st_size, made.evaluate("Evaluating FP32"))


def _variant(
    session: Session, run: Path, variant: Variant, reference: Accuracy, plan: PrecisionPlan | None
) -> tuple[VariantResult, Artefacts]:
    recipe = session.recipe
    folder = run if len(recipe.variants) == 1 else run / variant.name
    if variant.precision == "ptq":
        return _ptq_variant(session, run, folder, variant, reference)
    searched = search(session, variant) if plan is None and variant.budgets else None
    if searched:
        for line in searched.findings:
            session.warn(f"{variant.name}: {line}")
        for step in searched.steps:
            save_plan(step.plan, folder / "search" / f"{step.name.replace(' ', '-')}.yaml")
    plan = searched.chosen.plan if searched else plan or plan_variant(session, variant)
    save_plan(plan, folder / "plan.yaml")
    made = Artefacts(session, plan)
    stem = f"{session.model.stem}-{variant.name}"
    fp16 = publish(made.fp16, folder / f"{stem}-fp16.onnx")
    for fault in lint_graph(load_graph(fp16)):
        if session.unsigned and fault.rule == "asymmetric":
            continue  # as OpenVINO needs it
        session.warn(f"{variant.name}: {fault.message}.")
    onnx, source, parity = fp16, made.fp16, None
    # A CPU has no use for FP16: there the model of a search that quantizes nothing is the FP32 one.
    if plan.quantized or (searched and searched.runtime != "tensorrt"):
        onnx, source = publish(made.graph, folder / f"{stem}.onnx"), made.graph
        if made.checkpoint:
            publish(made.checkpoint, folder / f"{stem}.pt")
    label = f"Evaluating {variant.name}"
    accuracy = compare(evaluate_file(session, source, label, host_target(recipe)), reference.predictions)
    if recipe.evaluation.parity and made.checkpoint:
        parity = made.check_parity(accuracy, reference)
    result = VariantResult(
        name=variant.name,
        onnx=str(onnx.relative_to(run)),
        onnx_fp16=str(fp16.relative_to(run)),
        size_bytes=onnx.stat().st_size,
        accuracy=accuracy,
        plan=plan,
        parity=parity,
        build_from=None if plan.quantized else f"{session.model.stem}-fp32.onnx",
        search=searched,
        recovery=made.recovery(),
    )
    return result, made


def _ptq_variant(
    session: Session, run: Path, folder: Path, variant: Variant, reference: Accuracy
) -> tuple[VariantResult, Artefacts]:
    made = ptq_artefacts(session, variant.method)
    onnx = publish(made.graph, folder / f"{session.model.stem}-{variant.name}.onnx")
    accuracy = compare(made.evaluate(f"Evaluating {variant.name}"), reference.predictions)
    return VariantResult(variant.name, str(onnx.relative_to(run)), None, onnx.stat().st_size, accuracy), made


def _time_on_cpu(session: Session, folder: Path, results: list[VariantResult]) -> list[VariantResult]:
    """Time every ONNX file on the CPU, against FP32; what fails there stands in the result and the run goes on."""
    settings = session.recipe.bench
    if not settings.rounds or session.recipe.runtime == "tensorrt":
        return results
    runtime: CpuRuntime = "openvino" if session.recipe.runtime == "openvino" else "onnxruntime"
    broken: dict[str, str] = {}
    with session.stage("Time"), ExitStack() as stack:
        backends = {}
        for result in results:
            try:
                opened = open_file(folder / result.onnx, threads=settings.threads, runtime=runtime)
                backends[result.name] = stack.enter_context(closing(opened))
            except BackendError as error:  # noqa: PERF203
                broken[result.name] = str(error)
                session.warn(f"{result.name}: {error}")
        measured = time_in_turns(backends, settings.rounds, settings.runs, results[0].name)
    for reason in measured.noise:
        session.warn(f"The timing on the CPU is noisy: {reason}.")
    errors = {**broken, **measured.errors}
    return [
        replace(result, latency=measured.latencies.get(result.name), latency_error=errors.get(result.name))
        for result in results
    ]


def _add_losses(report: Report, names: Mapping[int, str]) -> Report:
    """Give every variant its losses with their intervals, whole and class by class."""
    reference = report.reference.accuracy
    metrics: list[Metric] = ["agreement"] if reference.main is None else ["map", "agreement"]

    def measure(result: VariantResult) -> VariantResult:
        model = result.engine_accuracy or result.accuracy
        found = {metric: bootstrap_classes(model, reference, metric, names) for metric in metrics}
        losses = {metric: loss for metric, (loss, _) in found.items()}
        return replace(result, losses=losses, class_losses={metric: classes for metric, (_, classes) in found.items()})

    return replace(report, variants=(report.reference, *map(measure, report.variants[1:])))


def _add_outlook(session: Session, report: Report) -> Report:
    if report.sensitivity is None:
        return report
    choices = open_choices(session)
    everything = sum(min(by_format.values(), default=0.0) for by_format in report.sensitivity.scores.values())
    rows = []
    for bits in OUTLOOK_BITS:
        plan = solve_bits(session, choices, bits)
        loss = sum(layer.score or 0.0 for layer in plan.layers)
        rows.append((bits, len(plan.quantized), 100 * loss / everything))
    return replace(report, outlook=tuple(rows))


def _add_pictures(session: Session, report: Report) -> Report:
    """Draw where the variant of interest and the float model part."""
    shown, count = variant_of_interest(report, recommend(report)), session.recipe.evaluation.pictures
    if shown is None or not count:
        return report
    model = (shown.engine_accuracy or shown.accuracy).predictions
    images, names = session.data.evaluation.names, session.model.names
    try:
        pictures = draw_gallery(model, report.reference.accuracy.predictions, images, names, report.folder, count)
    except ReportError as error:  # images may be gone where all figures came from the cache
        session.warn(str(error))
        return replace(report, warnings=tuple(session.warnings))
    return replace(report, pictures=pictures, pictured=shown.name)


def _fail_on_parity(report: Report) -> None:
    for variant in report.variants:
        if variant.parity and not variant.parity.holds:
            raise ParityError(
                f"'{variant.name}' is not the same model in torch and in ONNX: {variant.parity}. "
                f"See 'Parity' in '{report.folder / 'report.md'}', and do not deploy this file."
            )
