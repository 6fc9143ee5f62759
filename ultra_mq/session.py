# SPDX-License-Identifier: AGPL-3.0-or-later
"""One model on one data set, and every stage on them: done once, then served from the cache."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter

from ultra_mq.backends.onnxruntime import OnnxRuntime
from ultra_mq.cache import Cache
from ultra_mq.calibrate import Calibration, calibrate
from ultra_mq.console import console, quiet, warn
from ultra_mq.cost import layer_sizes
from ultra_mq.data import Batches, Data, choose, fingerprint_split, load_data
from ultra_mq.errors import DataError
from ultra_mq.evaluate import Accuracy, Parity, check_parity, compare, evaluate, load_accuracy, save_accuracy
from ultra_mq.export import OPSET, convert_to_fp16, export_onnx
from ultra_mq.model import PreparedModel, load_model
from ultra_mq.plan import PrecisionPlan, check_bits, uniform_plan
from ultra_mq.ptq import PtqMethod, PtqSettings, load_pixels, ptq, ptq_plan, save_calibration
from ultra_mq.quantization import apply_plan, save_checkpoint
from ultra_mq.recipe import Recipe, Variant
from ultra_mq.sensitivity import Sensitivity, measure_sensitivity
from ultra_mq.solve import solve_plan

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Session:
    """One run on its way: what is loaded, and what there is to tell at the end."""

    recipe: Recipe
    model: PreparedModel
    data: Data
    cache: Cache
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @functools.cached_property
    def evaluation_key(self) -> dict[str, Any]:
        """What every evaluation depends on beside the model; all images are read for it, so it is made once."""
        return {
            "images": fingerprint_split(self.data.evaluation),
            "names": {str(key): value for key, value in self.data.names.items()},
            "annotations": self.data.annotations.read_text() if self.data.annotations else None,
            "imgsz": self.recipe.imgsz,
        }

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

    def calibration_batches(self, images: int) -> Batches:
        """The recipe's choice of ``images`` calibration images."""
        chosen = choose(self.data.calibration, images, self.recipe.seed)
        return Batches(self.data.calibration, chosen, self.recipe.batch, torch_device(self.recipe.device))


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
        "loss": settings.loss,
        "formats": session.recipe.formats,
        "seed": session.recipe.seed,
        "calibration": asdict(calibration),
    }

    def make(folder: Path) -> None:
        with session.stage("Score"):
            scores = measure_sensitivity(
                session.model, calibration, batches, settings.loss, session.recipe.formats, session.recipe.seed
            )
            _write_json(folder / "sensitivity.json", scores)

    folder = session.cache.folder("sensitivity", depends_on, make)
    return cast(Sensitivity, _read_json(folder / "sensitivity.json", Sensitivity))


def plan_variant(session: Session, variant: Variant) -> PrecisionPlan:
    """The plan of a variant: uniform, or solved from the scores."""
    if variant.bits is None:
        return uniform_plan(session.model, variant.precision)
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
    return apply_plan(session.model, plan, calibrate_layers(session), correction, session.recipe.placement)


def make_artefacts(session: Session, plan: PrecisionPlan) -> Path:
    """Folder with the quantized checkpoint and the graphs of a plan, made where it is not in the cache."""
    recipe, model = session.recipe, session.model
    images = recipe.calibration.bias_correction
    depends_on: dict[str, Any] = {**graph_key(session), "formats": plan.quantized}
    if plan.quantized:
        depends_on["placement"] = recipe.placement
        depends_on["calibration"] = asdict(calibrate_layers(session))
        depends_on["correction"] = session.calibration_batches(images).fingerprint if images else None

    def make(folder: Path) -> None:
        with session.stage("Quantize and export" if plan.quantized else "Convert to FP16"):
            source = folder / "qdq.onnx"
            if plan.quantized and recipe.placement == "onnx":
                export_onnx(model.module, folder / "fp32.onnx", recipe.imgsz)
                pixels = load_pixels(session.calibration_batches(recipe.calibration.images))
                ptq_plan(folder / "fp32.onnx", source, pixels, plan)
            elif plan.quantized:
                module = quantize_model(session, plan)
                save_checkpoint(module, model, folder / "model.pt")
                export_onnx(module, source, recipe.imgsz)
            else:
                export_onnx(model.module, source, recipe.imgsz)
            image = next(iter(session.calibration_batches(1)))["img"].cpu().numpy()
            convert_to_fp16(source, folder / "fp16.onnx", image)

    return session.cache.folder("artefacts", depends_on, make)


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


def torch_device(device: str) -> str:
    """Torch's name of a recipe's device: ``0`` is ``cuda:0``, ``auto`` the first GPU where there is one."""
    if device == "auto":
        import torch

        return "cuda:0" if torch.cuda.is_available() else "cpu"
    return f"cuda:{device}" if device.isdigit() else device
