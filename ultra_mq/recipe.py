# SPDX-License-Identifier: AGPL-3.0-or-later
"""YAML recipes: everything a run depends on, in one strict file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from ultra_mq.backends.engine import BuildSettings, Target
from ultra_mq.calibrate import Method
from ultra_mq.cost import CostModel
from ultra_mq.errors import RecipeError
from ultra_mq.files import write_text
from ultra_mq.placement import Placement
from ultra_mq.plan import check_bits
from ultra_mq.ptq import PtqMethod
from ultra_mq.schema import validate
from ultra_mq.sensitivity import LossName

Metric = Literal["map", "agreement"]
Precision = Literal["fp16", "int8", "fp8", "mixed", "ptq"]

DEFAULT_BITS = 9.0
"""Budget where a user names none: a bit above all INT8 buys back most of what it loses."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CalibrationSettings(_Strict):
    """How the ranges of the quantizers are found."""

    images: int = Field(32, ge=1, description="Images of the train split that set the input ranges.")
    method: Method = Field(
        "mse",
        description="`mse` clips where the squared error is least, `max` takes the largest value; `entropy` and "
        "`percentile` are ModelOpt's.",
    )
    bias_correction: int = Field(16, ge=0, description="Images for bias correction; 0 leaves the biases alone.")


class SensitivitySettings(_Strict):
    """How the layers are scored."""

    images: int = Field(32, ge=1, description="Images of the train split on which the loss is differentiated.")
    loss: LossName = Field(
        "outputs",
        description="`outputs`: change of the model's own outputs, needs no labels; `labels`: detection loss.",
    )


class EvaluationSettings(_Strict):
    """What is proven at the end."""

    parity: bool = Field(True, description="Also validate the fake-quantized torch model and compare it with the ONNX.")
    max_parity_gap: float = Field(
        0.02, gt=0, description="Largest allowed distance in mAP50-95 and agreement between torch and ONNX, in [0, 1]."
    )


class BenchSettings(_Strict):
    """How latency is measured."""

    rounds: int = Field(5, ge=0, description="Rounds in which all artefacts take turns; 0 measures nothing.")
    runs: int = Field(10, ge=1, description="Passes of each ONNX file on the CPU a round.")
    engine_runs: int = Field(200, ge=100, description="Passes of each engine on the GPU a round.")
    threads: int = Field(1, ge=1, description="CPU threads of one inference.")


class LatencySettings(_Strict):
    """How the latency of a plan is predicted."""

    probes: int = Field(4, ge=0, description="Mixtures that are measured to learn what borders between formats cost.")


class EngineSettings(_Strict):
    """Which engines are built, and how."""

    target: Literal["auto", "tensorrt", "rtx", "none"] = Field(
        "auto",
        description="`tensorrt`, `rtx` (TensorRT-RTX), `none`, or `auto`: TensorRT where it works, else TensorRT-RTX.",
    )
    trt_python: str | None = Field(
        None, description="Python that has TensorRT; `ULTRA_MQ_TRT_PYTHON` or the running one by default."
    )
    workspace_gb: float | None = Field(
        None, gt=0, description="Scratch memory of the builder; the whole GPU by default."
    )
    optimization_level: int | None = Field(
        None, ge=0, le=5, description="0 builds quickly, 5 builds fast engines; TensorRT's default is 3."
    )
    version_compatible: bool = Field(False, description="Let later versions of TensorRT run the engine.")
    hardware_compatible: bool = Field(False, description="Let other GPUs from Ampere on run the engine.")
    dla_core: int | None = Field(None, ge=0, description="DLA core to run on, with fallback to the GPU.")
    compute_capability: str = Field(
        "8.9", pattern=r"^\d+\.\d$", description="GPU generation that `rtx` builds for, such as 8.9."
    )
    tactic_sources: tuple[str, ...] | None = Field(
        None, description="Kernel libraries to choose from, by TensorRT's names, such as `EDGE_MASK_CONVOLUTIONS`."
    )
    repairs: int = Field(4, ge=0, description="How often layers that fail to build may be put back to float.")
    min_agreement: float = Field(
        0.97, ge=0, le=1, description="Agreement of an engine with its own ONNX file below which the report warns."
    )
    timeout_s: float = Field(3600, gt=0, description="Seconds without a sign of life before the builder is ended.")

    def build_settings(self, target: Target) -> BuildSettings:
        """The same, for one target."""
        own = ("target", "trt_python", "repairs", "min_agreement")
        return BuildSettings(target=target, python=self.trt_python, **self.model_dump(exclude=set(own)))


class Variant(_Strict):
    """One model to make and prove."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="Name in files and tables.")
    precision: Precision = Field(
        "mixed",
        description="`fp16`, uniform `int8` or `fp8`, `mixed` under the budget `bits`, or `ptq`: INT8 by ModelOpt's "
        "ONNX path.",
    )
    bits: float | None = Field(
        None, description="Budget of a `mixed` variant: bits averaged over the weights, 8 to 16."
    )
    max_drop: float | None = Field(
        None, ge=0, description="Budget of a `mixed` variant: points of the metric that may be lost, 0.5 say."
    )
    metric: Metric | None = Field(
        None,
        description="What `max_drop` counts: `map` (mAP50-95) or `agreement` with the float model; `map` where the "
        "data has labels.",
    )
    max_latency_ms: float | None = Field(None, gt=0, description="Budget of a `mixed` variant: median milliseconds.")
    min_speedup: float | None = Field(
        None, gt=0, description="Budget of a `mixed` variant: float's median latency divided by its own, at least."
    )
    method: PtqMethod = Field("max", description="Calibration of a `ptq` variant: `max` or `entropy`.")

    @property
    def budgets(self) -> dict[str, float]:
        """Budgets that need measured models, by name."""
        found = {"max_drop": self.max_drop, "max_latency_ms": self.max_latency_ms, "min_speedup": self.min_speedup}
        return {name: value for name, value in found.items() if value is not None}

    @model_validator(mode="after")
    def _budgets_belong_to_mixed(self) -> Variant:
        budgets = [*self.budgets, *(["bits"] if self.bits is not None else [])]
        if bool(budgets) != (self.precision == "mixed"):
            raise ValueError(
                "precision 'mixed' needs a budget (bits, max_drop, max_latency_ms or min_speedup), and no other has one"
            )
        return self


class Recipe(_Strict):
    """A run: one model, one data set, the variants to make, and how they are proven."""

    model: str = Field("yolo11n.pt", description="Trained weights: a path or the name of an Ultralytics model.")
    data: str = Field("coco128.yaml", description="Ultralytics data YAML; calibrates on train, evaluates on val.")
    imgsz: int = Field(640, ge=32, description="Image size in pixels, a multiple of the model's stride.")
    batch: int = Field(4, ge=1, description="Images a batch for calibration, scoring and torch evaluation.")
    device: str = Field(
        "auto",
        coerce_numbers_to_str=True,
        description="Torch device: `cpu`, `0`, `cuda:1`; `auto` takes the first GPU where there is one.",
    )
    fraction: float = Field(1.0, gt=0, le=1, description="Share of both splits to use, as in Ultralytics.")
    seed: int = Field(0, description="Seed of the choice of images and of random projections.")
    cost_model: CostModel = Field(
        "weights",
        description="What a plan costs: bits averaged over `weights` or `macs`, or `latency` measured on the runtime.",
    )
    runtime: Literal["auto", "tensorrt", "onnxruntime", "openvino"] = Field(
        "auto",
        description="Where budgets of accuracy and latency are proven; `auto` is TensorRT where it works, else "
        "`onnxruntime`.",
    )
    placement: Placement = Field(
        "runtime",
        description="Where Q/DQ stand: `runtime` on layers, residual adds, concats and pools, as engines want it; "
        "`torch` on layers alone; `onnx` carries the plan out with ModelOpt's ONNX path.",
    )
    groups: bool = Field(
        True,
        description="Let layers that share a tensor take one decision, so that no runtime needs it in two precisions.",
    )
    formats: tuple[Literal["int8", "fp8"], ...] = Field(
        ("int8",),
        min_length=1,
        description="What `mixed` chooses from beside FP16. `fp8` (E4M3) runs on Ada, Hopper, Blackwell.",
    )
    strict: bool = Field(False, description="Treat bits below the floor as an error.")
    project: str | None = Field(None, description="Parent of the run folder, `runs/detect` by default.")
    name: str | None = Field(None, description="Name of the run folder.")
    exist_ok: bool = Field(False, description="Write into an existing run folder instead of making `name-2`.")
    variants: tuple[Variant, ...] = Field(
        (Variant(name="mixed-9bit", precision="mixed", bits=9),),
        min_length=1,
        description="Models to make and compare.",
    )
    calibration: CalibrationSettings = Field(CalibrationSettings(), description="How ranges are found.")
    sensitivity: SensitivitySettings = Field(SensitivitySettings(), description="How layers are scored.")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="What is proven.")
    latency: LatencySettings = Field(LatencySettings(), description="How latency is predicted.")
    bench: BenchSettings = Field(BenchSettings(), description="How latency is measured.")
    engine: EngineSettings = Field(EngineSettings(), description="Which engines are built.")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Recipe:
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError("every variant needs a name of its own")
        return self


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: YAML file.
        overrides: ``key=value`` pairs; nested keys with dots, ``calibration.images=64``.

    Raises:
        RecipeError: The file is missing, is not YAML, or does not fit the schema.
    """
    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe '{path}' cannot be read: {error}. See docs/recipes.md for the format.") from error
    if not isinstance(document, dict):
        raise RecipeError(f"Recipe '{path}' is not a mapping of keys to values. See docs/recipes.md for the format.")
    return make_recipe(document, overrides, where=f"recipe '{path}'")


def make_recipe(document: dict[str, Any], overrides: list[str] | None = None, where: str = "settings") -> Recipe:
    """Validate settings with overrides on top, and the bits of every variant.

    Raises:
        RecipeError: A key or a value does not fit the schema.
        BudgetError: The bits of a variant are outside (0, 16].
    """
    for override in overrides or []:
        _override(document, override)
    recipe = validate(TypeAdapter(Recipe), document, where, RecipeError)
    for variant in recipe.variants:
        if variant.bits is not None:
            check_bits(variant.bits, strict=recipe.strict)
    return recipe


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML, atomically; running it again reproduces the run."""
    document = recipe.model_dump(mode="json")
    write_text(path, yaml.safe_dump(document, sort_keys=False, width=120))


def _override(document: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"'{override}' is not an override. Write key=value, for example imgsz=640.")
    target = document
    *parents, last = key.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise RecipeError(f"'{override}' goes into '{parent}', which holds a single value.")
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value of '{override}' is not valid YAML: {error}.") from error
