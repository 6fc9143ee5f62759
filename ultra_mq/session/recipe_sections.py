# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sections of a recipe: how each stage goes about its work."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ultra_mq.core import Strict
from ultra_mq.plan import LossName, ScoreMethod
from ultra_mq.quantization import Method
from ultra_mq.runtimes import BuildOptions

Shape = tuple[int, int, int, int]


Metric = Literal["map", "agreement"]


def choose_metric(asked: Metric | None, *, labelled: bool) -> Metric:
    """What accuracy is counted in where a user does not say: the task's own metric where there are labels for one."""
    return asked or ("map" if labelled else "agreement")


METRIC_HELP = (
    "`map`, the task's main metric (mAP50-95 of boxes, masks, keypoints or rotated boxes, top-1 of classifiers), or "
    "`agreement` with the float model; `map` where the data has labels."
)


PER_CLASS_HELP = (
    "Points of the metric that a single class may be seen to lose: one breaks it whose whole 95 % interval lies above, "
    "and that at least 5 images hold."
)


class Criteria(Strict):
    """When a model is good enough; the report says which ones are."""

    device: str | None = Field(None, description="Part of the name of the device that it must have been timed on.")
    max_drop: float | None = Field(None, ge=0, description="Points of the metric that may be lost.")
    confidence: float | None = Field(
        None, gt=0.5, lt=1, description="How sure a model must be to keep to it; by default the estimate decides."
    )
    metric: Metric | None = Field(None, description=METRIC_HELP)
    max_drop_per_class: float | None = Field(None, ge=0, description=PER_CLASS_HELP)
    max_latency_ms: float | None = Field(None, gt=0, description="Median milliseconds of a pass, at most.")
    min_images_per_second: float | None = Field(None, gt=0, description="Images a second, at least.")

    @model_validator(mode="after")
    def _confidence_is_of_a_loss(self) -> Criteria:
        if self.confidence is not None and self.max_drop is None:
            raise ValueError("confidence says how sure max_drop must be kept to, and there is no max_drop")
        return self


class CalibrationSettings(Strict):
    """How the ranges of the quantizers are found."""

    images: int = Field(32, ge=1, description="Images of the train split that set the input ranges.")
    method: Method = Field(
        "mse",
        description="`mse` clips where the squared error is least, `max` takes the largest value; `entropy` and "
        "`percentile` are ModelOpt's.",
    )
    reduce_range: bool | None = Field(
        None,
        description="Use 7 of the 8 bits of the weights, for CPUs that would overflow (no VNNI) on OpenVINO; where "
        "`runtime` is such a CPU by default.",
    )
    bias_correction: int = Field(16, ge=0, description="Images for bias correction; 0 leaves the biases alone.")


class RecoverySettings(Strict):
    """How a quantized network learns again what the float one says, before it is exported; needs no labels."""

    enabled: bool = Field(False, description="Recover every quantized model (experimental); takes a GPU three minutes.")
    images: int = Field(160, ge=2, description="Images of the train split to learn from; a fifth of them is held out.")
    epochs: int = Field(20, ge=1, description="Passes over the images.")


class SensitivitySettings(Strict):
    """How the layers are scored."""

    images: int = Field(16, ge=1, description="Images of the train split on which the layers are scored.")
    method: ScoreMethod = Field(
        "perturb",
        description="`perturb` quantizes one layer at a time and measures the change of the outputs; `gradient` is "
        "ModelOpt's estimate, in one pass for all layers.",
    )
    loss: LossName = Field(
        "outputs",
        description="`outputs`: change of the model's own outputs, needs no labels; `labels`: detection loss, for "
        "`gradient` alone.",
    )

    @model_validator(mode="after")
    def _labels_need_gradients(self) -> SensitivitySettings:
        if self.loss == "labels" and self.method != "gradient":
            raise ValueError("loss 'labels' needs method 'gradient'")
        return self


class EvaluationSettings(Strict):
    """What is proven at the end."""

    parity: bool = Field(True, description="Also validate the fake-quantized torch model and compare it with the ONNX.")
    max_parity_gap: float = Field(
        0.02,
        gt=0,
        description="Distance in agreement between torch and ONNX, in [0, 1], beyond which the whole interval must lie "
        "for them to be called different.",
    )
    pictures: int = Field(
        12,
        ge=0,
        description="Images of the report in which float and quantized part most; a third as many of an even sample "
        "are drawn beside them. 0 draws none.",
    )


class ExportSettings(Strict):
    """Which shapes the graphs and engines take."""

    batch: int = Field(1, ge=1, description="Images in one pass.")
    dynamic: bool = Field(False, description="Let batch, height and width vary, as in Ultralytics' export.")
    profile: tuple[Shape, Shape, Shape] | None = Field(
        None,
        description="Smallest, best and largest input of a dynamic engine, `[batch, channels, height, width]` each; by "
        "default from one image of the model's stride to twice the image size, as in Ultralytics.",
    )

    @model_validator(mode="after")
    def _profiles_are_dynamic(self) -> ExportSettings:
        if self.profile and not self.dynamic:
            raise ValueError("a profile needs dynamic=true")
        return self


class BenchSettings(Strict):
    """How latency is measured."""

    rounds: int = Field(5, ge=0, description="Rounds in which all artefacts take turns; 0 measures nothing.")
    runs: int = Field(10, ge=1, description="Passes of each ONNX file on the CPU a round.")
    engine_runs: int = Field(200, ge=100, description="Passes of each engine on the GPU a round.")
    threads: int = Field(1, ge=1, description="CPU threads of one inference.")


class LatencySettings(Strict):
    """How the latency of a plan is predicted."""

    probes: int = Field(
        4,
        ge=0,
        le=10,
        description="Plans with the first or last stages in float that are measured to learn what layers and borders "
        "between formats cost.",
    )
    builds: int = Field(
        6, ge=0, description="Plans that a search for the fastest model within a loss builds after them, at most."
    )


class EngineSettings(BuildOptions):
    """Which engines are built, and how."""

    target: Literal["auto", "tensorrt", "rtx", "none"] = Field(
        "auto",
        description="`tensorrt`, `rtx` (TensorRT-RTX), `none`, or `auto`: TensorRT where it works, else TensorRT-RTX.",
    )
    tries: int = Field(
        1,
        ge=1,
        description="How often TensorRT builds each engine, every time anew; the fastest is kept, and the report says "
        "how far the builds are apart.",
    )
    build_on: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="Numbers of the GPUs that build engines side by side; they must be of the kind that the engines "
        "run on. The run's own GPU by default.",
    )
    repairs: int = Field(4, ge=0, description="How often layers that fail to build may be put back to float.")
    min_agreement: float = Field(
        0.97, ge=0, le=1, description="Agreement of an engine with its own ONNX file below which the report warns."
    )
    reference: bool = Field(
        True,
        description="Also build the FP16 engine where no variant is one, so that there is a speed-up to report.",
    )
