# SPDX-License-Identifier: AGPL-3.0-or-later
"""Methods of calibration held against each other, on the model and the data at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ultra_mq.core import Cache
from ultra_mq.measure import compare
from ultra_mq.plan import uniform_plan
from ultra_mq.quantization import Method
from ultra_mq.session import Artefacts, Recipe, float_artefacts, open_session, with_recipe


@dataclass(frozen=True)
class CalibrationResult:
    """Uniform INT8 with one way to calibrate.

    Attributes:
        method: How the ranges were chosen.
        images: Number of calibration images.
        agreement: AP50-95 with the float model's detections as ground truth, in [0, 1].
        main: Main metric of the task in [0, 1], or None for data without labels.
    """

    method: Method
    images: int
    agreement: float
    main: float | None


def compare_calibrations(
    recipe: Recipe, methods: Sequence[Method], image_counts: Sequence[int], cache: Cache | None = None
) -> tuple[CalibrationResult, ...]:
    """Quantize every layer to INT8 with each method and number of images, and measure what is left.

    Args:
        recipe: Model, data, placement, and the rest of the calibration.
        methods: Methods to try.
        image_counts: Numbers of calibration images to try.
        cache: Cache to use; the default one where it is None.

    Returns:
        One result for each pair, the best agreement first.
    """
    session = open_session(recipe, cache)
    reference = float_artefacts(session).evaluate("Evaluating FP32")
    plan = uniform_plan(session.model, "int8", recipe.placement)
    results = []
    for images in image_counts:
        for method in methods:
            calibration = recipe.calibration.model_copy(update={"method": method, "images": images})
            chosen = with_recipe(session, recipe.model_copy(update={"calibration": calibration}))
            accuracy = Artefacts(chosen, plan).evaluate(f"Evaluating {method}, {images} images")
            compared = compare(accuracy, reference.predictions)
            results.append(CalibrationResult(method, images, compared.agreement or 0.0, compared.main))
    return tuple(sorted(results, key=lambda result: -result.agreement))
