# SPDX-License-Identifier: AGPL-3.0-or-later
"""YAML recipes: everything a run depends on, in one strict file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter, field_validator, model_validator

from ultra_mq.core import FormatName, RecipeError, Strict, load_document, validate, write_text
from ultra_mq.plan import CostModel, check_bits
from ultra_mq.prepare import ImageSize, Placement, PreparedModel, gpu_index, height_width, size_text
from ultra_mq.runtimes import BuildOptions, BuildSettings, EngineTarget
from ultra_mq.session.recipe_sections import (
    BenchSettings,
    CalibrationSettings,
    Criteria,
    EngineSettings,
    EvaluationSettings,
    ExportSettings,
    LatencySettings,
    RecoverySettings,
    SensitivitySettings,
)
from ultra_mq.session.variant import Variant

AUTO_DATA = "auto"
"""Data that the checkpoint was trained on."""

DEFAULT_IMGSZ = 640

RESERVED_NAMES = ("fp32", "accuracy", "search", "gallery")
"""Names of the reference and of folders in a run folder."""

DEFAULT_BITS = 9.0
"""Budget where a user names none: a bit above all INT8 buys back most of what it loses."""


class Recipe(Strict):
    """A run: one model, one data set, the variants to make, and how they are proven."""

    model: str = Field("yolo11n.pt", description="Trained weights: a path or the name of an Ultralytics model.")
    data: str = Field(
        AUTO_DATA,
        description="Whatever Ultralytics takes as data: YAML, folder, NDJSON; calibrates on train, evaluates on val. "
        "`auto` is what the checkpoint was trained on, where that is here, else Ultralytics' small COCO for models "
        "with COCO's classes.",
    )
    agreement_data: str | None = Field(
        None,
        description="Folder of further images, which need no labels; a search counts agreement on them and on val.",
    )
    imgsz: int | tuple[int, int] | None = Field(
        None,
        description="Image size in pixels, multiples of the model's stride: a number, or `[height, width]`; what the "
        "checkpoint was trained at by default.",
    )
    batch: int = Field(4, ge=1, description="Images a batch for calibration, scoring and torch evaluation.")
    device: str = Field(
        "auto",
        coerce_numbers_to_str=True,
        description="Torch device: `cpu`, `0`, `cuda:1`; `auto` takes the first GPU where there is one.",
    )
    single_cls: bool | None = Field(
        None, description="Count all classes as one, as in Ultralytics; as the checkpoint was trained by default."
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
    formats: tuple[FormatName, ...] = Field(
        ("int8",),
        min_length=1,
        description="What `mixed` chooses from beside FP16. `fp8` (E4M3) runs on Ada, Hopper, Blackwell.",
    )
    strict: bool = Field(False, description="Treat bits below the floor as an error.")
    project: str | None = Field(None, description="Parent of the run folder, `runs/<task>` by default.")
    name: str | None = Field(None, description="Name of the run folder.")
    exist_ok: bool = Field(False, description="Write into an existing run folder instead of making `name-2`.")
    variants: tuple[Variant, ...] = Field(
        (Variant(name="mixed-9bit", precision="mixed", bits=9),),
        min_length=1,
        description="Models to make and compare.",
    )
    criteria: Criteria = Field(Criteria(), description="When a model is good enough.")
    pick: Literal["knee", "fastest-within-drop"] = Field(
        "fastest-within-drop",
        description="Which model the report recommends among those that meet the criteria: the fastest, or the knee of "
        "the front.",
    )
    calibration: CalibrationSettings = Field(CalibrationSettings(), description="How ranges are found.")
    sensitivity: SensitivitySettings = Field(SensitivitySettings(), description="How layers are scored.")
    recover: RecoverySettings = Field(RecoverySettings(), description="Label-free recovery of quantized models.")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="What is proven.")
    latency: LatencySettings = Field(LatencySettings(), description="How latency is predicted.")
    export: ExportSettings = Field(ExportSettings(), description="Which shapes graphs and engines take.")
    bench: BenchSettings = Field(BenchSettings(), description="How latency is measured.")
    engine: EngineSettings = Field(EngineSettings(), description="Which engines are built.")

    @field_validator("imgsz", mode="before")
    @classmethod
    def _number_or_height_and_width(cls, value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(r"\d+\s*,\s*\d+", value):
            value = [int(part) for part in value.split(",")]
        sizes = value if isinstance(value, (list, tuple)) else [value]
        if value is not None and (len(sizes) > 2 or not all(isinstance(size, int) and size > 0 for size in sizes)):
            raise ValueError("must be a number of pixels, or [height, width]")
        if not sizes:
            return None
        return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)

    @property
    def size(self) -> ImageSize:
        """Image size in pixels, once the checkpoint was asked for its own."""
        return self.imgsz or DEFAULT_IMGSZ

    @property
    def size_text(self) -> str:
        """Image size for the reader, ``640`` or ``384x640``."""
        return size_text(self.size)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Recipe:
        # Names become those of files, which some file systems do not tell apart by case.
        names = [variant.name.lower() for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError("every variant needs a name of its own, in upper and lower case alike")
        if taken := [name for name in names if name in RESERVED_NAMES]:
            raise ValueError(
                f"no variant can be called '{taken[0]}': the reference and folders of a run have the names "
                f"{', '.join(RESERVED_NAMES)}"
            )
        return self

    def build_settings(self, target: EngineTarget, model: PreparedModel | None = None) -> BuildSettings:
        """How engines are built for a target, on the recipe's device.

        Args:
            target: TensorRT or TensorRT-RTX.
            model: What is built, for the default profile of a dynamic engine.
        """
        options = self.engine.model_dump(include=set(BuildOptions.model_fields))
        profile = self.export.profile
        if profile is None and self.export.dynamic and model is not None:
            height, width = height_width(self.size)
            batch, channels, stride = self.export.batch, model.channels, model.stride
            smallest, largest = (1, channels, stride, stride), (batch, channels, 2 * height, 2 * width)
            profile = (smallest, (batch, channels, height, width), largest)
        return BuildSettings(target=target, device=gpu_index(self.device), profile=profile, **options)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: YAML file.
        overrides: ``key=value`` pairs; nested keys with dots, ``calibration.images=64``.

    Raises:
        RecipeError: The file is missing, is not YAML, or does not fit the schema.
    """
    document = load_document(path, "Recipe", "docs/recipes.md", RecipeError)
    return make_recipe(document, overrides, where=f"recipe '{path}'")


def make_recipe(document: dict[str, Any], overrides: list[str] | None = None, where: str = "settings") -> Recipe:
    """Validate settings with overrides on top, and the bits of every variant.

    Raises:
        RecipeError: A key or a value does not fit the schema.
        BudgetError: The bits of a variant are outside (0, 16].
    """
    for override in overrides or []:
        apply_override(document, override)
    recipe = validate(TypeAdapter(Recipe), document, where, RecipeError)
    for variant in recipe.variants:
        if variant.bits is not None:
            check_bits(variant.bits, strict=recipe.strict)
    return recipe


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML, atomically; running it again reproduces the run."""
    document = recipe.model_dump(mode="json")
    write_text(path, yaml.safe_dump(document, sort_keys=False, width=120))


def apply_override(document: dict[str, Any], override: str) -> None:
    """Put one ``key=value`` into a document; the value is YAML, nested keys have dots.

    Raises:
        RecipeError: It is no override, or goes into a single value.
    """
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
