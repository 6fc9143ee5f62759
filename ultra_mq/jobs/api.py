# SPDX-License-Identifier: AGPL-3.0-or-later
"""The Python API: ``quantize`` inside a training script, ``autoquant`` as a function, ``callback`` for Ultralytics."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ultra_mq.core import Cache, RecipeError, warn
from ultra_mq.graph import (
    Graph,
    PtqSettings,
    describe_graph,
    export_onnx,
    load_calibration,
    ptq,
    save_calibration,
)
from ultra_mq.jobs.exported_data import data_of
from ultra_mq.jobs.pipeline import run_recipe, settle
from ultra_mq.plan import PrecisionPlan
from ultra_mq.prepare import Batches, Data, choose, prepare_model, size_text, torch_device
from ultra_mq.report import Report
from ultra_mq.runtimes import read_exported
from ultra_mq.session import AUTO_DATA, DEFAULT_BITS, Artefacts, Metric, Recipe, make_recipe, open_session, plan_variant

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from ultra_mq.quantization import QuantizedYOLO

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
    metric: Metric | None = None,
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
        metric: ``map`` (the main metric of the task), or ``agreement`` with the float model.
        max_latency_ms: Median latency on the recipe's ``runtime``, at most.
        min_speedup: Speed relative to the float model there, at least.
        **settings: Further keys of a recipe, such as ``imgsz=320`` or ``name="trial"``.

    Returns:
        The report; ``report.folder`` holds the artefacts.

    Raises:
        UltraMQError: The input cannot be used.
    """
    given = {
        "bits": bits, "max_drop": max_drop, "metric": metric, "max_latency_ms": max_latency_ms,
        "min_speedup": min_speedup,
    }  # fmt: skip
    budgets = {name: value for name, value in given.items() if value is not None}
    return run_recipe(autoquant_recipe(weights, budgets, {"data": str(data), **settings}))


def autoquant_recipe(
    weights: str | Path, budgets: Mapping[str, Any], settings: Mapping[str, Any], overrides: list[str] | None = None
) -> Recipe:
    """The recipe of a single variant under budgets, named after them; of 9 bits where there is no budget."""
    if not budgets.keys() - {"metric"}:
        budgets = {**budgets, "bits": DEFAULT_BITS}
    bits = budgets.get("bits")
    words = {"max_drop": "drop", "max_latency_ms": "ms", "min_speedup": "speedup"}
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


def ptq_file(
    recipe: Recipe, settings: PtqSettings, calibration: Path | None, output: Path | None, task: str | None = None
) -> Graph:
    """Quantize the recipe's model, a checkpoint or an FP32 ONNX file, into a file named after the settings.

    The calibration tensor is written beside the result and used again by the next call with the same images.

    Args:
        recipe: Model, data, image size, seed, and the number of calibration images.
        settings: How to quantize.
        calibration: ``.npy`` tensor to use in place of the recipe's images.
        output: File to write; ``<model>-<settings>.onnx`` in the current folder by default.
        task: Task of an ONNX file that does not say its own.

    Raises:
        UltraMQError: The input cannot be used, or ModelOpt refused.
    """
    model = Path(recipe.model)
    path = output or Path(f"{model.stem}-{settings.tag}.onnx")
    if model.suffix == ".onnx":
        exported = read_exported(model)
        data = None if calibration and exported.task else data_of(exported, recipe, task)
        if calibration is not None:
            pixels = load_calibration(calibration, exported.imgsz or recipe.size, exported.channels)
        else:
            assert data is not None
            pixels = _calibration_pixels(data, recipe, path)
        with tempfile.TemporaryDirectory(prefix="ultra-mq-onnx-") as folder:
            described = describe_graph(model, Path(folder) / model.name, data)
            return ptq(described, path, pixels, settings, source=model)
    session = open_session(recipe)
    fp32 = path.with_name(f"{model.stem}-fp32.onnx")
    size, channels = session.recipe.size, session.model.channels
    if calibration is not None:
        pixels = load_calibration(calibration, size, channels)
    else:
        pixels = _calibration_pixels(session.data, session.recipe, path)
    export_onnx(session.model.module, fp32, size, recipe.export.batch, dynamic=recipe.export.dynamic)
    return ptq(fp32, path, pixels, settings)


def _calibration_pixels(data: Data, recipe: Recipe, path: Path) -> np.ndarray:
    """The recipe's calibration images, from the tensor beside a file where it is there."""
    split = data.calibration
    batches = Batches(split, choose(split, recipe.calibration.images, recipe.seed), recipe.batch)
    tensor = path.with_name(f"calibration-{size_text(data.imgsz)}-{batches.fingerprint[:8]}.npy")
    return load_calibration(tensor, data.imgsz, data.channels) if tensor.exists() else save_calibration(batches, tensor)


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
