# SPDX-License-Identifier: AGPL-3.0-or-later
"""The stages of a session: each done once, then served from the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter

from ultra_mq.backends.onnxruntime import OnnxRuntime
from ultra_mq.calibrate import Calibration, calibrate
from ultra_mq.cost import BITS_MODELS, CostModel, layer_sizes
from ultra_mq.data import Batches
from ultra_mq.errors import DataError
from ultra_mq.evaluate import Accuracy, Parity, check_parity, compare, evaluate, load_accuracy, save_accuracy
from ultra_mq.export import OPSET, convert_to_fp16, export_onnx
from ultra_mq.flow import trace_flow
from ultra_mq.groups import find_groups
from ultra_mq.perturb import measure_perturbation
from ultra_mq.placement import Placement
from ultra_mq.plan import PrecisionPlan, uniform_plan
from ultra_mq.ptq import PtqMethod, PtqSettings, load_pixels, ptq, ptq_plan, save_calibration
from ultra_mq.quantization import apply_plan, save_checkpoint
from ultra_mq.recipe import Recipe, Variant
from ultra_mq.sensitivity import Sensitivity, measure_sensitivity
from ultra_mq.session import Session, torch_device
from ultra_mq.solve import solve_plan

if TYPE_CHECKING:
    from torch import nn

QDQ = "qdq.onnx"


def calibrate_layers(session: Session) -> Calibration:
    """Input ranges of all layers, from the cache where they are known."""
    settings = session.recipe.calibration
    batches = session.calibration_batches(settings.images)
    placement = session.recipe.placement
    depends_on = {**_inputs(session, batches), "method": settings.method, "joins": placement == "runtime"}

    def make(folder: Path) -> None:
        with session.stage("Calibrate"):
            _write_json(folder / "calibration.json", calibrate(session.model, batches, settings.method, placement))

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
        "method": settings.method,
        "loss": settings.loss,
        "formats": session.recipe.formats,
        "seed": session.recipe.seed,
        "calibration": asdict(calibration),
        "placement": session.recipe.placement,
    }

    def make(folder: Path) -> None:
        with session.stage("Score"):
            recipe = session.recipe
            if settings.method == "perturb":
                placement: Placement = "torch" if recipe.placement == "onnx" else recipe.placement
                scores = measure_perturbation(session.model, calibration, batches, recipe.formats, placement)
            else:
                scores = measure_sensitivity(
                    session.model, calibration, batches, settings.loss, recipe.formats, recipe.seed
                )
            _write_json(folder / "sensitivity.json", scores)

    folder = session.cache.folder("sensitivity", depends_on, make)
    return cast(Sensitivity, _read_json(folder / "sensitivity.json", Sensitivity))


def plan_variant(session: Session, variant: Variant) -> PrecisionPlan:
    """The plan of a variant: uniform, or solved from the scores for a budget of bits."""
    recipe = session.recipe
    if variant.bits is None:
        return replace(uniform_plan(session.model, variant.precision), placement=recipe.placement)
    return solve_bits(session, score_layers(session), variant.bits)


def solve_bits(session: Session, sensitivity: Sensitivity, bits: float) -> PrecisionPlan:
    """The plan with the least sum of scores for a budget of bits, over MACs where the recipe says so."""
    recipe = session.recipe
    plan = solve_plan(
        session.model,
        sensitivity,
        layer_sizes(session.model, counted_bits(recipe), recipe.imgsz),
        bits,
        cost_model=counted_bits(recipe),
        data_fingerprint=session.calibration_batches(recipe.sensitivity.images).fingerprint,
        groups=decision_groups(session),
    )
    return replace(plan, placement=recipe.placement)


def counted_bits(recipe: Recipe) -> CostModel:
    """What a budget of bits averages over; a latency has no bits, so weights are counted beside it."""
    return recipe.cost_model if recipe.cost_model in BITS_MODELS else "weights"


def decision_groups(session: Session) -> tuple[tuple[str, ...], ...]:
    """Layers that take one decision; every layer alone where the recipe wants that."""
    layers = [layer.name for layer in session.model.quantizable]
    return (
        find_groups(trace_flow(session.model.module), layers)
        if session.recipe.groups
        else tuple((layer,) for layer in layers)
    )


def quantize_model(session: Session, plan: PrecisionPlan) -> nn.Module:
    """Carry out a plan on the torch model, calibrated, with bias correction where the recipe wants it."""
    images = session.recipe.calibration.bias_correction
    correction = session.calibration_batches(images) if images and plan.quantized else None
    return apply_plan(session.model, plan, calibrate_layers(session), correction, session.recipe.placement)


def make_fp32(session: Session) -> Path:
    """The model's FP32 graph, exported where it is not in the cache."""

    def make(entry: Path) -> None:
        with session.stage("Export FP32"):
            export_onnx(session.model.module, entry / "fp32.onnx", session.recipe.imgsz)

    return session.cache.folder("fp32", graph_key(session), make) / "fp32.onnx"


def make_artefacts(session: Session, plan: PrecisionPlan) -> Path:
    """Folder with the quantized checkpoint and the Q/DQ graph of a plan, made where it is not in the cache.

    A plan that quantizes nothing has the FP32 graph alone.
    """
    if not plan.quantized:
        return make_fp32(session).parent
    recipe, model = session.recipe, session.model

    def make(folder: Path) -> None:
        with session.stage("Quantize and export"):
            if recipe.placement == "onnx":
                pixels = load_pixels(session.calibration_batches(recipe.calibration.images))
                ptq_plan(make_fp32(session), folder / QDQ, pixels, plan)
            else:
                module = quantize_model(session, plan)
                save_checkpoint(module, model, folder / "model.pt")
                export_onnx(module, folder / QDQ, recipe.imgsz)

    return session.cache.folder("artefacts", _plan_key(session, plan), make)


def graph_of(session: Session, plan: PrecisionPlan) -> Path:
    """FP32 or Q/DQ graph of a plan, which runtimes on a CPU take and weakly typed engines are built from."""
    return make_artefacts(session, plan) / QDQ if plan.quantized else make_fp32(session)


def make_fp16(session: Session, plan: PrecisionPlan) -> Path:
    """The graph of a plan with FP16 around its Q/DQ, which strongly typed engines are built from."""

    def make(folder: Path) -> None:
        source = graph_of(session, plan)
        with session.stage("Convert to FP16"):
            image = next(iter(session.calibration_batches(1)))["img"].cpu().numpy()
            convert_to_fp16(source, folder / "fp16.onnx", image)

    return session.cache.folder("fp16", _plan_key(session, plan), make) / "fp16.onnx"


def make_ptq(session: Session, fp32: Path, method: PtqMethod) -> Path:
    """Folder with the FP32 graph quantized by ModelOpt's ONNX path, made where it is not in the cache."""
    settings = PtqSettings(method=method)
    batches = session.calibration_batches(session.recipe.calibration.images)

    def make(folder: Path) -> None:
        with session.stage("Quantize the ONNX"):
            ptq(fp32, folder / "ptq.onnx", save_calibration(batches, folder / "calibration.npy"), settings)
            (folder / "calibration.npy").unlink()

    return session.cache.folder("ptq", {**graph_key(session), **asdict(settings), "images": batches.fingerprint}, make)


def evaluate_onnx(session: Session, path: Path, label: str) -> Accuracy:
    """Accuracy of an ONNX file on ONNX Runtime, from the cache where it is known."""

    def make(entry: Path) -> None:
        with session.stage("Evaluate"):
            save_accuracy(evaluate(OnnxRuntime(path), session.data, label=label), entry)

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return load_accuracy(session.cache.folder("accuracy", {**session.evaluation_key, "onnx": digest}, make))


def measure_parity(
    session: Session, plan: PrecisionPlan, artefacts: Path, onnx: Accuracy, reference: Accuracy
) -> Parity:
    """Hold the fake-quantized torch model of a plan against its ONNX file."""
    recipe = session.recipe

    def make(entry: Path) -> None:
        with session.stage("Parity"):
            module = quantize_model(session, plan)
            device = torch_device(recipe.device)
            accuracy = evaluate(module, session.data, label="Evaluating torch", device=device, batch=recipe.batch)
            save_accuracy(accuracy, entry)

    entry = session.cache.folder("accuracy", {**session.evaluation_key, "torch": artefacts.name}, make)
    torch_accuracy = compare(load_accuracy(entry), reference.detections)
    return check_parity(torch_accuracy, onnx, recipe.evaluation.max_parity_gap)


def graph_key(session: Session) -> dict[str, Any]:
    """What every exported graph depends on; class names stand in its metadata."""
    names = {str(index): name for index, name in session.model.names.items()}
    return {"model": session.model.fingerprint, "names": names, "imgsz": session.recipe.imgsz, "opset": OPSET}


def _plan_key(session: Session, plan: PrecisionPlan) -> dict[str, Any]:
    """What the graph of a plan depends on."""
    images = session.recipe.calibration.bias_correction
    depends_on: dict[str, Any] = {**graph_key(session), "formats": plan.quantized}
    if plan.quantized:
        depends_on["placement"] = session.recipe.placement
        depends_on["calibration"] = asdict(calibrate_layers(session))
        depends_on["correction"] = session.calibration_batches(images).fingerprint if images else None
    return depends_on


def _inputs(session: Session, batches: Batches) -> dict[str, Any]:
    return {
        "model": session.model.fingerprint,
        "images": batches.fingerprint,
        "imgsz": session.recipe.imgsz,
        "batch": session.recipe.batch,
        "device": torch_device(session.recipe.device).partition(":")[0],
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(TypeAdapter(type(value)).dump_json(value))


def _read_json(path: Path, kind: type[Any]) -> Any:
    return TypeAdapter(kind).validate_python(json.loads(path.read_text()))
