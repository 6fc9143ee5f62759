# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a graph is the same model as the torch one: by its layers, and by what a user sees, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ultra_mq.core import EvaluationError
from ultra_mq.measure.accuracy import Accuracy
from ultra_mq.measure.bootstrap import Drop, bootstrap_gap
from ultra_mq.measure.layer_parity import Parting


@dataclass(frozen=True)
class Parity:
    """The same model in torch and as ONNX, on the same images.

    Attributes:
        main: Main metric of fake-quantized torch and of the ONNX file, or None without labels.
        agreement: Agreement of both with the float model.
        gap: Points of agreement by which the ONNX file is behind torch, with their interval.
        limit: Points allowed.
        compared: Number of layers and blocks that were given the same input.
        partings: Those that gave something else, in the order of the forward pass.
    """

    main: tuple[float, float] | None
    agreement: tuple[float, float]
    gap: Drop
    limit: float
    compared: int
    partings: tuple[Parting, ...]

    @property
    def holds(self) -> bool:
        """Whether torch and ONNX are the same model, as far as can be told."""
        return not self.partings and self.gap.low <= self.limit and self.gap.high >= -self.limit

    def __str__(self) -> str:
        words = []
        if self.partings:
            first = self.partings[0]
            steps = max(first.steps, first.weight_steps)
            words.append(
                f"{first.name} is the first of {len(self.partings)} to give something else, by {steps:.2g} steps"
            )
        if self.gap.low > self.limit or self.gap.high < -self.limit:
            words.append(
                f"agreement parts by {abs(self.gap.points):.2f} points (95 % interval {self.gap.low:.2f} to "
                f"{self.gap.high:.2f}), the limit is {self.limit:g}"
            )
        return "; ".join(words) or "no layer parts, and the agreement is the same within its interval"


def check_parity(
    torch_accuracy: Accuracy, onnx_accuracy: Accuracy, reference: Accuracy, compared: Sequence[Parting], limit: float
) -> Parity:
    """Hold the fake-quantized torch model against its ONNX file.

    Args:
        torch_accuracy: Accuracy of the torch module, with agreement.
        onnx_accuracy: Accuracy of the ONNX file, with agreement.
        reference: Accuracy of the float model.
        compared: What ``compare_layers`` found.
        limit: Largest distance allowed in agreement, in [0, 1].
    """
    if torch_accuracy.agreement is None or onnx_accuracy.agreement is None:
        raise EvaluationError("Parity needs the agreement of both sides; call compare() on each first.")
    pair = (torch_accuracy.main, onnx_accuracy.main)
    partings = tuple(found for found in compared if found.parts)
    return Parity(
        main=None if pair[0] is None or pair[1] is None else (pair[0], pair[1]),
        agreement=(torch_accuracy.agreement, onnx_accuracy.agreement),
        gap=bootstrap_gap(onnx_accuracy.predictions, torch_accuracy.predictions, reference.predictions),
        limit=100 * limit,
        compared=len(compared),
        partings=partings,
    )
