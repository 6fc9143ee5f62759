# SPDX-License-Identifier: AGPL-3.0-or-later
"""Latency of a choice of formats on one target, predicted from the plans that were measured there.

A pass takes what its layers take in their formats, what no choice changes, and a price for each border at which a
tensor changes its precision. ``latency_fit`` learns these numbers, anew with every plan that was built and timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ultra_mq.core import FLOAT


@dataclass(frozen=True)
class Timed:
    """One plan that was timed on the target.

    Attributes:
        name: Name of the plan.
        choice: Layer to format, of the layers that are quantized.
        latency_ms: Median latency.
        layers_ms: Layer to time by the profiler, the rest under the empty name; empty where it was not profiled.
        predicted_ms: Prediction without this measurement; None where there was nothing to predict from.
    """

    name: str
    choice: Mapping[str, str]
    latency_ms: float
    layers_ms: Mapping[str, float] = field(default_factory=dict)
    predicted_ms: float | None = None


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the latency of any choice of formats on one target.

    Attributes:
        runtime: Runtime, version and device that were measured.
        rest_ms: Time of everything that no choice changes, in a model that quantizes anything.
        layers_ms: Layer to format to time, the operations around the layer included.
        links: Layer to the layers that read its result.
        sizes: Layer to the elements of its result, in millions.
        borders_ms: Layer to the price of a border behind it: where a reader of its float result is quantized, and the
            reverse; without an entry it is free.
        float_ms: Measured latency of the float model, which is built with other settings than all others; None
            predicts it like theirs.
        timed: Every plan that was measured.
    """

    runtime: dict[str, str]
    rest_ms: float
    layers_ms: dict[str, dict[str, float]]
    links: dict[str, tuple[str, ...]]
    sizes: dict[str, float]
    borders_ms: dict[str, tuple[float, float]] = field(default_factory=dict)
    float_ms: float | None = None
    timed: tuple[Timed, ...] = ()

    def predict(self, choice: Mapping[str, str]) -> float:
        """Milliseconds of a choice; layers that are missing in it are float."""
        if self.float_ms is not None and set(choice.values()) <= {FLOAT}:
            return self.float_ms
        layers = sum(times[choice.get(layer, FLOAT)] for layer, times in self.layers_ms.items())
        return self.rest_ms + layers + sum(self.border_ms(*border) for border in find_borders(choice, self.links))

    def border_ms(self, source: str, quantized: bool) -> float:
        """Price of the border behind a layer that is quantized, or that is not, in milliseconds."""
        return self.borders_ms.get(source, (0.0, 0.0))[quantized]


def find_borders(choice: Mapping[str, str], links: Mapping[str, tuple[str, ...]]) -> list[tuple[str, bool]]:
    """Layers whose result a reader takes in another precision, each with whether the layer itself is quantized."""
    found = []
    for source, readers in links.items():
        quantized = choice.get(source, FLOAT) != FLOAT
        if any((choice.get(reader, FLOAT) != FLOAT) != quantized for reader in readers):
            found.append((source, quantized))
    return found
