# SPDX-License-Identifier: AGPL-3.0-or-later
"""What layers and borders cost on a target, learnt from the plans that were measured there.

Every unknown (the time of a layer in a format, the price of a border, the rest) has a normal prior: what the profiles
of the measured plans say of it, or a free border. Measured latencies are sums of unknowns, so the posterior is normal
too (Bayesian linear regression: Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.3), and with it
the uncertainty of every prediction: small for plans like those that were measured, large far from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ultra_mq.core import FLOAT, KernelTime
from ultra_mq.plan.cost import count_outputs
from ultra_mq.plan.kernel_times import find_owners, times_by_layer
from ultra_mq.plan.latency import LatencyModel, Timed, find_borders
from ultra_mq.prepare import ImageSize, PreparedModel, find_links

LAYER_DEVIATION = 0.15
"""How far a layer's time is from what the profiles say, as a share of it."""

REST_DEVIATION = 0.03
BORDER_DEVIATION = 0.01
"""Price of a border, and of a million elements of it, as shares of the float model's latency."""

SOURCE_DEVIATION = 0.003
"""How far the border behind one layer is from what borders of its size cost, as a share of the same."""

INSERTED_DEVIATION = 0.3
"""How far what a profile shows around the borders of a plan is from their price, as a share of it."""

BUILD_DEVIATION = 0.01
"""How far two builds of one plan are apart; on an H100 builds of one graph by TensorRT 8.6 differ by some per cent."""


@dataclass(frozen=True)
class Probe:
    """One model that was measured to learn the latencies.

    Attributes:
        name: Name of the plan.
        choice: Layer to format, of the layers that are quantized.
        latency_ms: Median latency.
        kernels: What the profiler said; empty where it was not asked.
    """

    name: str
    choice: Mapping[str, str]
    latency_ms: float
    kernels: Sequence[KernelTime] = ()


def fit_latency(
    model: PreparedModel, imgsz: ImageSize, runtime: dict[str, str], probes: Sequence[Probe], batch: int = 1
) -> LatencyModel:
    """Learn the latencies of a target from probes.

    Args:
        model: Prepared model.
        imgsz: Image size in pixels.
        runtime: What was measured on, from ``Backend.describe``.
        probes: The float model first; every layer in each format must be in a probe that was profiled.
        batch: Images a pass.

    Returns:
        The model; each probe but the uniform ones is predicted by a fit without it.
    """
    layers = [layer.name for layer in model.quantizable]
    owners = find_owners(model.flow, layers)
    written = count_outputs(model.module, imgsz)
    free = LatencyModel(
        runtime=runtime,
        rest_ms=0.0,
        layers_ms={layer: {} for layer in layers},
        links=find_links(model.flow, layers),
        sizes={layer: batch * written[layer] / 1e6 for layer in layers},
        float_ms=probes[0].latency_ms,
    )
    timed = [
        Timed(
            probe.name,
            dict(probe.choice),
            probe.latency_ms,
            times_by_layer(probe.kernels, probe.latency_ms, owners, layers) if probe.kernels else {},
        )
        for probe in probes
    ]
    return _refit(free, tuple(replace(one, predicted_ms=_without(free, timed, one)) for one in timed))


def learn_from(latency: LatencyModel, name: str, choice: Mapping[str, str], latency_ms: float) -> LatencyModel:
    """The prediction after one more plan was measured, which it predicts beforehand."""
    known = Timed(name, dict(choice), latency_ms, {}, latency.predict(choice))
    return _refit(latency, (*latency.timed, known))


def deviations_ms(latency: LatencyModel, choices: Sequence[Mapping[str, str]]) -> list[float]:
    """Standard deviations of predictions in milliseconds, the spread of builds included."""
    if not latency.timed:
        return [0.0] * len(choices)
    unknowns = _Unknowns(latency, latency.timed)
    _, covariance = unknowns.posterior()
    found = []
    for choice in choices:
        row = unknowns.row(choice)
        built = BUILD_DEVIATION * latency.predict(choice)
        found.append(float(np.sqrt(row @ covariance @ row + built**2)) if choice else 0.0)
    return found


def _without(latency: LatencyModel, timed: Sequence[Timed], one: Timed) -> float | None:
    """Prediction of a probe by the others; None where they do not show each layer in the format that it has there."""
    others = tuple(other for other in timed if other is not one and other.layers_ms)
    shown = [{other.choice.get(layer, FLOAT) for other in others} for layer in latency.layers_ms]
    if not one.choice or any(
        one.choice.get(layer, FLOAT) not in formats for layer, formats in zip(latency.layers_ms, shown, strict=True)
    ):
        return None
    return _refit(latency, others).predict(one.choice)


def _refit(latency: LatencyModel, timed: tuple[Timed, ...]) -> LatencyModel:
    unknowns = _Unknowns(latency, timed)
    mean, _ = unknowns.posterior()
    prices = {
        source: tuple(max(float(unknowns.border(source, side) @ mean), 0.0) for side in (False, True))
        for source in latency.links
    }
    return replace(
        latency,
        rest_ms=float(mean[0]),
        layers_ms={
            layer: {option: max(float(mean[unknowns.layers[layer, option]]), 0.0) for option in by_format}
            for layer, by_format in unknowns.profiled.items()
        },
        borders_ms={source: (price[0], price[1]) for source, price in prices.items()},
        timed=timed,
    )


class _Unknowns:
    """The unknowns in one vector: the rest, layers in formats, the law of borders, and borders one by one.

    Attributes:
        profiled: Layer to format to time by the profiles.
        layers: Layer and format to their place in the vector.
    """

    def __init__(self, latency: LatencyModel, timed: Sequence[Timed]) -> None:
        self.latency, self.timed = latency, timed
        self.unit = timed[0].latency_ms
        self.beside = {one.name: _beside_borders(one.choice, latency.links) for one in timed}
        self.profiled = {layer: self._profile(layer) for layer in latency.layers_ms}
        keys = [(layer, option) for layer, by_format in self.profiled.items() for option in by_format]
        self.layers = {key: 1 + index for index, key in enumerate(keys)}
        # Price and price of a million elements, of borders to quantized, then of borders to float.
        self.law = 1 + len(keys)
        sides = [(source, side) for source in latency.links for side in (False, True)]
        self.sources = {key: self.law + 4 + index for index, key in enumerate(sides)}
        self.size = self.law + 4 + len(sides)

    def row(self, choice: Mapping[str, str]) -> np.ndarray:
        """Which unknowns add up to the latency of a choice."""
        row = self._borders(choice)
        row[0] = 1.0
        for layer in self.profiled:
            row[self.layers[layer, choice.get(layer, FLOAT)]] = 1.0
        return row

    def border(self, source: str, quantized: bool) -> np.ndarray:
        """Which unknowns add up to the price of a border."""
        row = np.zeros(self.size)
        first = self.law + 2 * quantized
        row[first : first + 2] = 1.0, self.latency.sizes[source]
        row[self.sources[source, quantized]] = 1.0
        return row

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the unknowns, in milliseconds."""
        mean, deviation = self._prior()
        rows, seen, spread = zip(*self._observations(), strict=True)
        a, y = np.array(rows), np.array(seen)
        scaled = a * deviation**2
        gain = np.linalg.solve(a @ scaled.T + np.diag(np.array(spread) ** 2), scaled).T
        return mean + gain @ (y - a @ mean), np.diag(deviation**2) - gain @ scaled

    def _prior(self) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = np.zeros(self.size), np.full(self.size, SOURCE_DEVIATION * self.unit)
        quantized = [one for one in self.timed if one.choice and one.layers_ms] or list(self.timed[:1])
        mean[0] = np.mean([one.layers_ms.get("", 0.0) for one in quantized])
        deviation[0] = REST_DEVIATION * self.unit
        for (layer, option), index in self.layers.items():
            mean[index] = self.profiled[layer][option]
            deviation[index] = LAYER_DEVIATION * mean[index]
        deviation[self.law : self.law + 4] = BORDER_DEVIATION * self.unit
        return mean, deviation

    def _observations(self) -> list[tuple[np.ndarray, float, float]]:
        """Rows, what was seen, and how far that may be off: of latencies, and of what borders inserted in profiles."""
        found = []
        for one in self.timed:
            if not one.choice:
                continue
            found.append((self.row(one.choice), one.latency_ms, BUILD_DEVIATION * one.latency_ms))
            if one.layers_ms and (beside := self.beside[one.name]):
                usual = sum(self.profiled[layer][one.choice.get(layer, FLOAT)] for layer in beside)
                inserted = sum(one.layers_ms[layer] for layer in beside) - usual
                spread = INSERTED_DEVIATION * abs(inserted) + BORDER_DEVIATION * self.unit
                found.append((self._borders(one.choice), inserted, spread))
        return found

    def _borders(self, choice: Mapping[str, str]) -> np.ndarray:
        borders = find_borders(choice, self.latency.links)
        return sum((self.border(*border) for border in borders), np.zeros(self.size))

    def _profile(self, layer: str) -> dict[str, float]:
        """Time of a layer in each format: the mean of profiles without a border beside it, where there are any."""
        times: dict[str, list[tuple[int, float]]] = {}
        for one in self.timed:
            if one.layers_ms:
                # The float model is built with other settings, so that its kernels are not quite those of a mixture.
                rank = 1 if not one.choice else 2 * (layer in self.beside[one.name])
                times.setdefault(one.choice.get(layer, FLOAT), []).append((rank, one.layers_ms[layer]))
        return {
            option: float(np.mean([ms for rank, ms in seen if rank == min(seen)[0]])) for option, seen in times.items()
        }


def _beside_borders(choice: Mapping[str, str], links: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Layers on either side of a border."""
    found: set[str] = set()
    for source, quantized in find_borders(choice, links):
        found |= {source, *(r for r in links[source] if (choice.get(r, FLOAT) != FLOAT) != quantized)}
    return found
