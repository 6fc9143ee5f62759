# SPDX-License-Identifier: AGPL-3.0-or-later
"""The Python API: ``quantize`` inside a training script, ``autoquant`` as a function, ``callback`` for Ultralytics."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ultra_mq.core import Cache, ModelError, RecipeError, warn
from ultra_mq.jobs.pipeline import run_recipe, settle
from ultra_mq.plan import PrecisionPlan
from ultra_mq.prepare import (
    Batches,
    choose,
    load_data,
    load_images,
    prepare_model,
    torch_device,
)
from ultra_mq.report import Report
from ultra_mq.session import (
    AUTO_DATA,
    DEFAULT_BITS,
    Artefacts,
    Metric,
    Recipe,
    complete_recipe,
    make_recipe,
    open_session,
    plan_variant,
)

if TYPE_CHECKING:
    from torch import nn

    from ultra_mq.quantization import QuantizedYOLO, Recovery

ModelT = TypeVar("ModelT", bound="nn.Module")


def quantize(
    model: ModelT,
    bits: float = 9.0,
    data: str | Path = AUTO_DATA,
    *,
    plan: PrecisionPlan | None = None,
    cache: Cache | None = None,
    **settings: Any,
) -> ModelT:
    """Quantize a model in memory: sensitivity, plan, calibrated quantizers.

    Args:
        model: An Ultralytics ``YOLO``, whose network is replaced by the quantized one, or its inner ``nn.Module``,
            which is left untouched.
        bits: Budget in effective bits, 8 to 16; see ``docs/search.md``.
        data: Whatever Ultralytics takes as data; its train split calibrates and scores.
        plan: Plan to carry out in place of searching one for ``bits``.
        cache: Cache for calibration and scores; the default one where it is None.
        **settings: Further keys of a recipe, such as ``imgsz=320`` or ``device="0"``.

    Returns:
        The ``YOLO`` that was passed, or a new module. It is calibrated and trainable: ``model.train(...)``
        fine-tunes with the quantizers on, ``model.save()`` and ``YOLO(path)`` keep them, and
        ``model.export(format="onnx")`` writes the Q/DQ graph.

    Raises:
        UltraMQError: The model, the data or the budget cannot be used; the model is unchanged then.

    Examples:
        >>> model = ultra_mq.quantize(YOLO("yolo11n.pt"), bits=9, data="coco128.yaml")
        >>> model.train(data="coco128.yaml", **ultra_mq.QAT)
    """
    document = {**settings, "data": str(data), "variants": [{"name": "model", "bits": bits}]}
    if plan is not None:
        document.setdefault("placement", plan.placement)
    recipe = make_recipe(document, where="arguments of quantize()")
    if recipe.placement == "onnx":
        raise RecipeError("placement=onnx makes an ONNX file and no torch model. Use placement='runtime' or 'torch'.")
    session = open_session(recipe, cache, prepare_model(model, torch_device(recipe.device)))
    plan = settle(session, plan) if plan else plan_variant(session, recipe.variants[0])
    module = Artefacts(session, plan).module()
    if not hasattr(model, "add_callback"):
        return module  # type: ignore[return-value]
    from ultra_mq.quantization import QuantizedYOLO

    model.model = module
    model.predictor = None  # type: ignore[assignment]
    model.__class__ = QuantizedYOLO
    return model


def recover(
    model: nn.Module,
    images: str | Path,
    *,
    reference: nn.Module | str | Path | None = None,
    number: int = 160,
    epochs: int = 20,
    **settings: Any,
) -> Recovery:
    """Let a quantized model learn again what its float one says; needs no labels, and never makes it worse.

    Args:
        model: A ``YOLO`` that ``quantize`` made, or one opened from a quantized checkpoint; it is changed in place.
        images: Whatever Ultralytics takes as data, whose train split is used, or a folder of images without labels.
        reference: The float model or its checkpoint; by default the checkpoint that ``model`` was loaded from.
        number: Images to learn from; a fifth of them is held out, to choose the best epoch by.
        epochs: Passes over the images.
        **settings: Further keys of a recipe, such as ``imgsz=320`` or ``device="0"``.

    Returns:
        The held-out losses, and which epoch was kept; 0 for the model as it was.

    Raises:
        UltraMQError: The model, its float one or the images cannot be used; the model is unchanged then.

    Examples:
        >>> model = ultra_mq.quantize(YOLO("yolo11n.pt"), bits=8, data="coco128.yaml")
        >>> ultra_mq.recover(model, "coco128.yaml")
    """
    from ultralytics import YOLO

    from ultra_mq.quantization import recover as recover_module

    inner = getattr(model, "model", model) if hasattr(model, "add_callback") else model
    if getattr(inner, "quantization", None) is None:
        raise ModelError("The model is not quantized, so there is nothing to recover. Call ultra_mq.quantize first.")
    reference = reference if reference is not None else getattr(model, "ckpt_path", None)
    if reference is None:
        raise ModelError("It is not known which float model this was. Pass it with reference='yolo11n.pt'.")
    asked = make_recipe({**settings, "data": str(images)}, where="arguments of recover()")
    device = torch_device(asked.device)
    floats = YOLO(reference) if isinstance(reference, (str, Path)) else reference
    prepared = prepare_model(floats, device)
    recipe, _ = complete_recipe(asked, prepared)
    if Path(images).is_dir() and prepared.task != "classify":
        split = load_images([images], prepared, recipe.size)
    else:
        split = load_data(images, recipe.size, prepared.stride, task=prepared.task, classes=prepared.names).calibration
    batches = Batches(split, choose(split, number, recipe.seed), recipe.batch, device)
    inner.to(device).eval()
    return recover_module(inner, prepared.module, batches, epochs, seed=recipe.seed)


def load(path: str | Path) -> QuantizedYOLO:
    """Open a quantized checkpoint to train it further, or to resume an interrupted training.

    ``YOLO(path)`` is enough to validate, predict and export. Its ``train`` starts from Ultralytics' fresh float
    network; the one of the returned object keeps the quantizers.

    Args:
        path: ``.pt`` file of a quantized model, such as ``last.pt`` of its training.

    Examples:
        >>> ultra_mq.load("runs/detect/train/weights/last.pt").train(resume=True)
    """
    from ultra_mq.quantization import QuantizedYOLO

    return QuantizedYOLO(path)


def autoquant(
    weights: str | Path,
    bits: float | None = None,
    data: str | Path = AUTO_DATA,
    *,
    max_drop: float | None = None,
    max_drop_per_class: float | None = None,
    metric: Metric | None = None,
    confidence: float | None = None,
    max_latency_ms: float | None = None,
    min_speedup: float | None = None,
    **settings: Any,
) -> Report:
    """Run the whole pipeline on a checkpoint, as ``ultra-mq autoquant`` does.

    Args:
        weights: Trained ``.pt`` weights.
        bits: Budget in effective bits, 8 to 16; lower saturates with a warning. 9 where there is no budget at all.
        data: Whatever Ultralytics takes as data: calibrates on train, evaluates on val.
        max_drop: Points of ``metric`` that may be lost.
        max_drop_per_class: Points that a single class may be seen to lose.
        metric: ``map`` (the main metric of the task), or ``agreement`` with the float model.
        confidence: How sure a plan must be to keep to ``max_drop``, 0.9 say; by default the estimate decides.
        max_latency_ms: Median latency on the recipe's ``runtime``, at most.
        min_speedup: Speed relative to the float model there, at least.
        **settings: Further keys of a recipe, such as ``imgsz=320`` or ``name="trial"``.

    Returns:
        The report; ``report.folder`` holds the artefacts.

    Raises:
        UltraMQError: The input cannot be used.
    """
    given = {
        "bits": bits, "max_drop": max_drop, "max_drop_per_class": max_drop_per_class, "metric": metric,
        "confidence": confidence, "max_latency_ms": max_latency_ms, "min_speedup": min_speedup,
    }  # fmt: skip
    budgets = {name: value for name, value in given.items() if value is not None}
    return run_recipe(autoquant_recipe(weights, budgets, {"data": str(data), **settings}))


def autoquant_recipe(
    weights: str | Path, budgets: Mapping[str, Any], settings: Mapping[str, Any], overrides: list[str] | None = None
) -> Recipe:
    """The recipe of a single variant under budgets, named after them; of 9 bits where there is no budget."""
    if not budgets.keys() - {"metric", "confidence"}:
        budgets = {**budgets, "bits": DEFAULT_BITS}
    bits = budgets.get("bits")
    words = {"max_drop": "drop", "max_drop_per_class": "class-drop", "max_latency_ms": "ms", "min_speedup": "speedup"}
    parts = [f"{word}-{budgets[name]:g}" for name, word in words.items() if name in budgets]
    if bits is not None:
        parts.insert(0, f"mixed-{bits:g}bit" if bits > 8 else "int8")
    document = {**settings, "model": str(weights), "variants": [{"name": "-".join(parts), **budgets}]}
    return make_recipe(document, overrides)


def compare_recipe(
    weights: str | Path, bits: Sequence[float], settings: dict[str, Any], overrides: list[str] | None = None
) -> Recipe:
    """The recipe of FP16, uniform INT8, ModelOpt's ONNX INT8, and mixed precision at each of ``bits``."""
    variants: list[dict[str, Any]] = [
        {"name": "fp16", "precision": "fp16"},
        {"name": "int8", "precision": "int8"},
        {"name": "onnx-ptq", "precision": "ptq"},
        *({"name": f"mixed-{budget:g}bit", "bits": budget} for budget in bits),
    ]
    document = {"name": "compare", **settings, "model": str(weights), "variants": variants}
    return make_recipe(document, overrides)


def callback(bits: float = 9.0, **settings: Any) -> Callable[[Any], None]:
    """An Ultralytics callback that quantizes the best checkpoint when training ends.

    Args:
        bits: Budget in effective bits.
        **settings: Further keys of a recipe; ``data``, ``imgsz`` and ``device`` come from the training.

    Returns:
        Function for ``model.add_callback("on_train_end", ultra_mq.callback(bits=9))``. The run folder is
        ``ultra-mq`` inside the folder of the training.

    Whatever goes wrong when training has ended is a warning with the command to run by hand.

    Raises:
        UltraMQError: Bits or settings do not fit, before training starts.
    """
    autoquant_recipe("best.pt", {"bits": bits}, settings)

    def on_train_end(trainer: Any) -> None:
        weights = trainer.best if trainer.best.exists() else trainer.last
        try:
            quantize_trained(trainer, weights)
        except Exception as error:  # a training that took days must not end in an error of its last step
            warn(
                f"The training is done, its quantization is not: {error} By hand: "
                f"ultra-mq autoquant --bits {bits:g} {shlex.quote(str(weights))} "
                f"{shlex.quote(f'data={trainer.args.data}')}"
            )

    def quantize_trained(trainer: Any, weights: Path) -> None:
        size = trainer.args.imgsz
        known = {
            "data": str(trainer.args.data),
            "imgsz": list(size) if isinstance(size, (list, tuple)) else int(size),
            "single_cls": bool(trainer.args.single_cls),
            "device": "cpu" if trainer.device.type == "cpu" else str(trainer.device.index or 0),
            "project": str(trainer.save_dir),
            "name": "ultra-mq",
        }
        run_recipe(autoquant_recipe(weights, {"bits": bits}, {**known, **settings}))

    return on_train_end
