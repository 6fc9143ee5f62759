# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long a whole run still takes, told from its first evaluation: a stage costs so many passes of the float model."""

from __future__ import annotations

from dataclasses import dataclass

from ultra_mq.session.recipe import Recipe

EVALUATE = "Evaluate"

PASSES = {"Evaluate": 1.3, "Parity": 5.0, "Calibrate": 9.0, "Score": 1.15}
"""Passes of the float model that a stage costs an image, or an image and layer: YOLO11n at 640 px on two cores."""

SECONDS = {
    "Export FP32": 1.5, "Quantize and export": 7.0, "Convert to FP16": 4.0, "Quantize the ONNX": 30.0, "Build rtx": 2.0,
    "Build tensorrt": 90.0,
}  # fmt: skip
"""Seconds of stages that depend on the graph rather than on images."""

SINGLE_THREAD = 2.0
"""How much longer a pass on one thread takes than one of the evaluation."""


@dataclass(frozen=True)
class Expected:
    """A stage to come: passes of the float model, and seconds beside them."""

    name: str
    passes: float = 0.0
    seconds: float = 0.0


def expect_stages(recipe: Recipe, images: int, layers: int, engine: str | None) -> tuple[Expected, ...] | None:
    """The stages of a run in order; None for one that searches, since nobody knows how many plans that takes.

    Args:
        recipe: What to do.
        images: Images of the evaluation split.
        layers: Layers that can be quantized.
        engine: ``tensorrt`` or ``rtx``; None where nothing is built.
    """
    if any(variant.budgets for variant in recipe.variants):
        return None

    def on_images(name: str, count: int) -> Expected:
        return Expected(name, PASSES[name] * count)

    def fixed(name: str) -> Expected:
        return Expected(name, seconds=SECONDS[name])

    stages = [fixed("Export FP32"), on_images(EVALUATE, images)]
    done: set[str] = set()
    for variant in recipe.variants:
        quantized = variant.precision not in ("fp16", "ptq")
        if quantized and "Calibrate" not in done:
            stages.append(on_images("Calibrate", recipe.calibration.images))
        if variant.precision == "mixed" and "Score" not in done:
            stages.append(Expected("Score", PASSES["Score"] * recipe.sensitivity.images * layers))
        done |= {stage.name for stage in stages}
        if variant.precision == "ptq":
            stages.append(fixed("Quantize the ONNX"))
        else:
            stages += [*([fixed("Quantize and export")] if quantized else []), fixed("Convert to FP16")]
        stages.append(on_images(EVALUATE, images))
        if quantized and recipe.evaluation.parity:
            stages.append(on_images("Parity", images))
        if engine and variant.precision != "ptq":
            stages.append(Expected("Build", seconds=SECONDS[f"Build {engine}"]))
    runs = recipe.bench.rounds * recipe.bench.runs * (1 + len(recipe.variants))
    if runs:
        stages.append(Expected("Time", SINGLE_THREAD * runs))
    return tuple(stages)


class Forecast:
    """The stages of a run that are still to come.

    Args:
        stages: All of them, in order.
    """

    def __init__(self, stages: tuple[Expected, ...]) -> None:
        self.left = list(stages)
        self.pass_seconds: float | None = None

    def begin(self, name: str) -> None:
        """A stage begins: what stood before it came from the cache."""
        names = [stage.name for stage in self.left]
        if name in names:
            del self.left[: names.index(name)]

    def end(self, name: str, seconds: float) -> None:
        """A stage is done; the first evaluation tells how fast the machine is."""
        if self.left and self.left[0].name == name:
            done = self.left.pop(0)
            if name == EVALUATE and self.pass_seconds is None and done.passes:
                self.pass_seconds = seconds / done.passes

    @property
    def seconds_left(self) -> float | None:
        """Of the stages to come, the one that has begun among them; None before the first evaluation."""
        if self.pass_seconds is None:
            return None
        return sum(stage.passes * self.pass_seconds + stage.seconds for stage in self.left)


def about(seconds: float) -> str:
    """A rough time in words: ``40 s``, ``3 min``."""
    return f"{max(10, 10 * round(seconds / 10))} s" if seconds < 90 else f"{round(seconds / 60)} min"
