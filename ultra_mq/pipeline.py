# SPDX-License-Identifier: AGPL-3.0-or-later
"""The stages in order, from weights and data to a report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter

from ultra_mq.backends import tensorrt_rtx
from ultra_mq.backends.onnxruntime import OnnxRuntime
from ultra_mq.bench import bench
from ultra_mq.cache import Cache, versions
from ultra_mq.calibrate import Calibration, calibrate
from ultra_mq.console import console, quiet, warn
from ultra_mq.cost import layer_sizes
from ultra_mq.data import Batches, Data, choose, fingerprint_split, load_data
from ultra_mq.errors import DataError, ParityError, RunFolderError
from ultra_mq.evaluate import Accuracy, Parity, check_parity, compare, evaluate, load_accuracy, save_accuracy
from ultra_mq.export import convert_to_fp16, export_onnx
from ultra_mq.files import atomic_path
from ultra_mq.model import PreparedModel, load_model
from ultra_mq.plan import PrecisionPlan, check_bits, check_plan, save_plan, solve_plan, uniform_plan
from ultra_mq.quantization import apply_plan, save_checkpoint
from ultra_mq.recipe import Recipe, Variant, save_recipe
from ultra_mq.report import Report, VariantResult, write_report
from ultra_mq.sensitivity import Sensitivity, measure_sensitivity

if TYPE_CHECKING:
    from torch import nn

OUTLOOK_BITS = (8.0, 8.5, 9.0, 9.5, 10.0, 11.0, 12.0, 14.0)
TENSORRT_HINT = (
    "TensorRT engines, which need an NVIDIA GPU; on that machine: "
    "trtexec --onnx={onnx} --stronglyTyped --saveEngine=model.plan"
)


@dataclass
class Session:
    """One run on its way: what is loaded, and what there is to tell at the end."""

    recipe: Recipe
    model: PreparedModel
    data: Data
    cache: Cache
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and note how long it took."""
        console.print(f"[bold]{name}[/]")
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def warn(self, message: str) -> None:
        """Tell the user now, and again in the report."""
        warn(message)
        self.warnings.append(message)

    def calibration_batches(self, images: int, batch: int | None = None) -> Batches:
        """The first choice of ``images`` calibration images."""
        chosen = choose(self.data.calibration, images, self.recipe.seed)
        return Batches(self.data.calibration, chosen, batch or self.recipe.batch, torch_device(self.recipe.device))


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
    results = [_reference(session, folder)]
    for variant in recipe.variants:
        results.append(_variant(session, folder, variant, results[0].accuracy, plan))
    results = _time_all(session, folder, results)
    report = Report(
        folder=folder,
        recipe=recipe,
        variants=tuple(results),
        sensitivity=score_layers(session) if _needs_scores(recipe, plan) else None,
        warnings=tuple(session.warnings),
        not_built=tuple(_not_built(results)),
        versions=versions(),
        seconds=session.seconds,
    )
    report = _add_outlook(session, report)
    write_report(report)
    _fail_on_parity(report)
    return report


def open_session(recipe: Recipe, cache: Cache | None = None, model: PreparedModel | None = None) -> Session:
    """Load the model and the data, and check everything that can be checked before work starts.

    Args:
        recipe: What to do.
        cache: Cache to use; the default one where it is None.
        model: A model that is prepared already, in place of the recipe's weights.

    Raises:
        UltraMQError: The model or the data cannot be used.
    """
    if model is None:
        with quiet():
            model = load_model(recipe.model, torch_device(recipe.device))
    data = load_data(recipe.data, recipe.imgsz, model.stride, task=model.task, fraction=recipe.fraction)
    if len(data.names) != len(model.names):
        raise DataError(
            f"'{model.source}' knows {len(model.names)} classes and '{recipe.data}' has {len(data.names)}. "
            f"Pass the data that the model was trained on."
        )
    session = Session(recipe, model, data, cache or Cache())
    for split in (data.calibration, data.evaluation):
        if split.skipped:
            session.warn(f"{split.skipped} unreadable images of the {split.name} split were left out.")
    if data.overlap:
        session.warn(
            f"{data.overlap} of {len(data.evaluation.images)} evaluation images are calibration images too; "
            f"accuracy on them flatters the quantized model."
        )
    for variant in recipe.variants:
        if variant.bits is not None and (message := check_bits(variant.bits)):
            session.warn(message)
    return session


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


def calibrate_layers(session: Session) -> Calibration:
    """Input ranges of all layers, from the cache where they are known."""
    settings = session.recipe.calibration
    batches = session.calibration_batches(settings.images)
    depends_on = {**_inputs(session, batches), "method": settings.method}

    def make(folder: Path) -> None:
        with session.stage("Calibrate"):
            _write_json(folder / "calibration.json", calibrate(session.model, batches, settings.method))

    folder = session.cache.folder("calibration", depends_on, make)
    return cast(Calibration, _read_json(folder / "calibration.json", Calibration))


def score_layers(session: Session) -> Sensitivity:
    """Sensitivity of all layers, from the cache where it is known."""
    settings = session.recipe.sensitivity
    if settings.loss == "labels" and not session.data.calibration.labelled:
        raise DataError(
            f"The train split of '{session.recipe.data}' has no labels, and sensitivity.loss=labels needs them. "
            f"Use sensitivity.loss=outputs."
        )
    calibration = calibrate_layers(session)
    batches = session.calibration_batches(settings.images)
    depends_on = {
        **_inputs(session, batches),
        "loss": settings.loss,
        "seed": session.recipe.seed,
        "calibration": asdict(calibration),
    }

    def make(folder: Path) -> None:
        with session.stage("Score"):
            scores = measure_sensitivity(session.model, calibration, batches, settings.loss, seed=session.recipe.seed)
            _write_json(folder / "sensitivity.json", scores)

    folder = session.cache.folder("sensitivity", depends_on, make)
    return cast(Sensitivity, _read_json(folder / "sensitivity.json", Sensitivity))


def plan_variant(session: Session, variant: Variant) -> PrecisionPlan:
    """The plan of a variant: uniform, or solved from the scores."""
    if variant.precision == "int8":
        return uniform_plan(session.model, "int8")
    if variant.precision == "fp16":
        return uniform_plan(session.model, "fp16")
    assert variant.bits is not None
    sensitivity = score_layers(session)
    sizes = layer_sizes(session.model, session.recipe.cost_model, session.recipe.imgsz)
    images = session.calibration_batches(session.recipe.sensitivity.images)
    return solve_plan(
        session.model,
        sensitivity,
        sizes,
        variant.bits,
        cost_model=session.recipe.cost_model,
        data_fingerprint=images.fingerprint,
    )


def quantize_model(session: Session, plan: PrecisionPlan) -> nn.Module:
    """Carry out a plan on the torch model, calibrated, with bias correction where the recipe wants it."""
    images = session.recipe.calibration.bias_correction
    correction = session.calibration_batches(images) if images and plan.quantized else None
    return apply_plan(session.model, plan, calibrate_layers(session), correction)


def _needs_scores(recipe: Recipe, plan: PrecisionPlan | None) -> bool:
    return plan is None and any(variant.precision == "mixed" for variant in recipe.variants)


def _reference(session: Session, folder: Path) -> VariantResult:
    model, imgsz = session.model, session.recipe.imgsz

    def make(entry: Path) -> None:
        with session.stage("Export FP32"):
            export_onnx(model.module, entry / "fp32.onnx", imgsz)

    entry = session.cache.folder("fp32", {"model": model.fingerprint, "imgsz": imgsz}, make)
    path = _publish(entry / "fp32.onnx", folder / f"{model.stem}-fp32.onnx")
    accuracy = _evaluate_onnx(session, path, "Evaluating FP32")
    return VariantResult("fp32", path.name, None, path.stat().st_size, accuracy)


def _variant(
    session: Session, run: Path, variant: Variant, reference: Accuracy, plan: PrecisionPlan | None
) -> VariantResult:
    recipe = session.recipe
    folder = run if len(recipe.variants) == 1 else run / variant.name
    plan = plan or plan_variant(session, variant)
    save_plan(plan, folder / "plan.yaml")
    entry = _artefacts(session, plan)
    fp16 = _publish(entry / "fp16.onnx", folder / f"{session.model.stem}-{variant.name}-fp16.onnx")
    onnx, parity = fp16, None
    if plan.quantized:
        onnx = _publish(entry / "qdq.onnx", folder / f"{session.model.stem}-{variant.name}.onnx")
        _publish(entry / "model.pt", folder / f"{session.model.stem}-{variant.name}.pt")
    accuracy = compare(_evaluate_onnx(session, onnx, f"Evaluating {variant.name}"), reference.detections)
    if plan.quantized and recipe.evaluation.parity:
        parity = _parity(session, plan, entry, accuracy, reference)
    return VariantResult(
        name=variant.name,
        onnx=str(onnx.relative_to(run)),
        onnx_fp16=str(fp16.relative_to(run)),
        size_bytes=onnx.stat().st_size,
        accuracy=accuracy,
        plan=plan,
        parity=parity,
        engine=_build_rtx(session, fp16),
    )


def _artefacts(session: Session, plan: PrecisionPlan) -> Path:
    """Folder with the quantized checkpoint and the graphs of a plan, made where it is not in the cache."""
    recipe, model = session.recipe, session.model
    images = recipe.calibration.bias_correction
    depends_on: dict[str, Any] = {"model": model.fingerprint, "formats": plan.quantized, "imgsz": recipe.imgsz}
    if plan.quantized:
        amax = calibrate_layers(session).amax
        depends_on["amax"] = {name: amax[name] for name in plan.quantized}
        depends_on["correction"] = session.calibration_batches(images).fingerprint if images else None

    def make(folder: Path) -> None:
        with session.stage("Quantize and export" if plan.quantized else "Convert to FP16"):
            source = folder / "qdq.onnx"
            if plan.quantized:
                module = quantize_model(session, plan)
                save_checkpoint(module, model, folder / "model.pt")
                export_onnx(module, source, recipe.imgsz)
            else:
                export_onnx(model.module, source, recipe.imgsz)
            image = next(iter(session.calibration_batches(1)))["img"].cpu().numpy()
            convert_to_fp16(source, folder / "fp16.onnx", image)

    return session.cache.folder("artefacts", depends_on, make)


def _evaluate_onnx(session: Session, path: Path, label: str) -> Accuracy:
    def make(entry: Path) -> None:
        with session.stage("Evaluate"):
            save_accuracy(evaluate(OnnxRuntime(path), session.data, label=label), entry)

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return load_accuracy(session.cache.folder("accuracy", {**_evaluation(session), "onnx": digest}, make))


def _parity(session: Session, plan: PrecisionPlan, artefacts: Path, onnx: Accuracy, reference: Accuracy) -> Parity:
    recipe = session.recipe

    def make(entry: Path) -> None:
        with session.stage("Parity"):
            module = quantize_model(session, plan)
            device = torch_device(recipe.device)
            accuracy = evaluate(module, session.data, label="Evaluating torch", device=device, batch=recipe.batch)
            save_accuracy(accuracy, entry)

    entry = session.cache.folder("accuracy", {**_evaluation(session), "torch": artefacts.name}, make)
    torch_accuracy = compare(load_accuracy(entry), reference.detections)
    return check_parity(torch_accuracy, onnx, recipe.evaluation.max_parity_gap)


def _time_all(session: Session, folder: Path, results: list[VariantResult]) -> list[VariantResult]:
    settings = session.recipe.bench
    if not settings.rounds:
        return results
    with session.stage("Time"):
        open_files = {result.name: OnnxRuntime(folder / result.onnx, settings.threads) for result in results}
        latencies = bench(open_files, settings.rounds, settings.runs)
    return [replace(result, latency=latencies[result.name]) for result in results]


def _build_rtx(session: Session, onnx: Path) -> tensorrt_rtx.RtxEngine | None:
    if tensorrt_rtx.why_unavailable():
        return None
    with session.stage("Build"):
        return tensorrt_rtx.build_engine(
            onnx,
            onnx.with_suffix(".rtx.engine"),
            OnnxRuntime(onnx).metadata,
            session.recipe.engine.compute_capability,
        )


def _not_built(results: list[VariantResult]) -> list[str]:
    lines = []
    if reason := tensorrt_rtx.why_unavailable():
        lines.append(f"TensorRT-RTX engines: {reason}.")
    lines.append(TENSORRT_HINT.format(onnx=results[-1].onnx_fp16))
    return lines


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


def _inputs(session: Session, batches: Batches) -> dict[str, Any]:
    return {
        "model": session.model.fingerprint,
        "images": batches.fingerprint,
        "imgsz": session.recipe.imgsz,
        "batch": session.recipe.batch,
        "device": torch_device(session.recipe.device).partition(":")[0],
    }


def _evaluation(session: Session) -> dict[str, Any]:
    return {
        "images": fingerprint_split(session.data.evaluation),
        "names": {str(key): value for key, value in session.data.names.items()},
        "annotations": session.data.annotations.read_text() if session.data.annotations else None,
        "imgsz": session.recipe.imgsz,
    }


def _publish(source: Path, target: Path) -> Path:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(TypeAdapter(type(value)).dump_json(value))


def _read_json(path: Path, kind: type[Any]) -> Any:
    return TypeAdapter(kind).validate_python(json.loads(path.read_text()))


def torch_device(device: str) -> str:
    """Torch's name of a recipe's device: ``0`` is ``cuda:0``, ``auto`` the first GPU where there is one."""
    if device == "auto":
        import torch

        return "cuda:0" if torch.cuda.is_available() else "cpu"
    return f"cuda:{device}" if device.isdigit() else device
