# SPDX-License-Identifier: AGPL-3.0-or-later
"""Latency of a choice of formats, predicted from what the target runtime's profiler says of each layer.

A few models are built and measured on the target: all layers in float, all in each format, and some mixtures. The
profiler tells how the uniform models spend their time layer by layer. What the mixtures take beyond the sum of their
layers is the price of the borders, where a tensor changes its precision on the way from one layer to the next; it is
a price per pass and per element, fitted by non-negative least squares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ultra_mq.core import FLOAT, KernelTime
from ultra_mq.plan.cost import count_outputs
from ultra_mq.prepare import JOINS, ImageSize, Op, PreparedModel, find_links, layer_of

_NODE = re.compile(r"/model\.\d+[\w./]*")


@dataclass(frozen=True)
class Probe:
    """One model that was measured to learn the latencies.

    Attributes:
        choice: Layer to format, of the layers that are quantized.
        latency_ms: Median latency.
        kernels: What the profiler said, for the uniform ones.
    """

    choice: Mapping[str, str]
    latency_ms: float
    kernels: Sequence[KernelTime] = ()


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the latency of any choice of formats on one target.

    Attributes:
        runtime: Runtime, version and device that were measured.
        rest_ms: Time of everything that no choice changes.
        layers_ms: Layer to format to time, the operations around the layer included.
        links: Layer to the layers that read its result.
        sizes: Layer to the elements of its result, in millions.
        quantize_ms: Price of a border from float to quantized: milliseconds a pass, and a million elements.
        dequantize_ms: The same from quantized to float.
        observed: Predicted and measured milliseconds of every probe; a mixture is predicted by a fit without it.
    """

    runtime: dict[str, str]
    rest_ms: float
    layers_ms: dict[str, dict[str, float]]
    links: dict[str, tuple[str, ...]]
    sizes: dict[str, float]
    quantize_ms: tuple[float, float] = (0.0, 0.0)
    dequantize_ms: tuple[float, float] = (0.0, 0.0)
    observed: tuple[tuple[float, float], ...] = ()

    def predict(self, choice: Mapping[str, str]) -> float:
        """Milliseconds of a choice; layers that are missing in it are float."""
        layers = sum(times[choice.get(layer, FLOAT)] for layer, times in self.layers_ms.items())
        prices = np.array([*self.quantize_ms, *self.dequantize_ms])
        return self.rest_ms + layers + float(prices @ self.borders(choice))

    def border_ms(self, source: str) -> tuple[float, float]:
        """Price of the border behind a layer: where a reader of its float result is quantized, and the reverse."""
        pair = np.array([1.0, self.sizes[source]])
        return float(pair @ self.quantize_ms), float(pair @ self.dequantize_ms)

    def borders(self, choice: Mapping[str, str]) -> np.ndarray:
        """Tensors that change precision: to quantized, their millions of elements, to float, their elements."""
        found = np.zeros(4)
        for source, readers in self.links.items():
            quantized = source in choice and choice[source] != FLOAT
            differ = any((choice.get(reader, FLOAT) != FLOAT) != quantized for reader in readers)
            if differ:
                found[2 * quantized : 2 * quantized + 2] += (1.0, self.sizes[source])
        return found


def fit_latency(
    model: PreparedModel, imgsz: ImageSize, runtime: dict[str, str], probes: Sequence[Probe], batch: int = 1
) -> LatencyModel:
    """Learn the latencies of a target from probes.

    Args:
        model: Prepared model.
        imgsz: Image size in pixels.
        runtime: What was measured on, from ``Backend.describe``.
        probes: The float model first, then one with every layer in each format that it has kernels for, each with
            its kernels; then mixtures.
        batch: Images a pass.
    """
    flow = model.flow
    layers = [layer.name for layer in model.quantizable]
    owners = find_owners(flow, layers)
    uniform = [probe for probe in probes if probe.kernels]
    base, *others = (_by_layer(probe, owners, layers) for probe in uniform)
    layers_ms = {layer: {FLOAT: base[layer]} for layer in layers}
    for probe, times in zip(uniform[1:], others, strict=True):
        # What changes outside of all layers, such as the conversion of the input, is shared among those that change.
        share = (times[""] - base[""]) / len(probe.choice)
        for layer, option in probe.choice.items():
            layers_ms[layer][option] = times[layer] + share
    written = count_outputs(model.module, imgsz)
    model_of = LatencyModel(
        runtime=runtime,
        rest_ms=base[""],
        layers_ms=layers_ms,
        links=find_links(flow, layers),
        sizes={layer: batch * written[layer] / 1e6 for layer in layers},
    )
    return fit_borders(model_of, probes)


def fit_borders(latency: LatencyModel, probes: Sequence[Probe]) -> LatencyModel:
    """Fit the prices of borders to measured models, and predict each one from the others."""
    from scipy.optimize import nnls

    free = replace(latency, quantize_ms=(0.0, 0.0), dequantize_ms=(0.0, 0.0))
    borders = np.array([free.borders(probe.choice) for probe in probes])
    measured = np.array([probe.latency_ms for probe in probes])
    layers = np.array([free.predict(probe.choice) for probe in probes])

    def prices(among: np.ndarray) -> np.ndarray:
        found: np.ndarray = nnls(borders[among], (measured - layers)[among])[0]
        return found

    everyone = np.ones(len(probes), bool)
    quantize, quantize_size, dequantize, dequantize_size = map(float, prices(everyone))
    observed = []
    for index in range(len(probes)):
        others = everyone.copy()
        others[index] = False
        observed.append((float(layers[index] + borders[index] @ prices(others)), float(measured[index])))
    return replace(
        free,
        quantize_ms=(quantize, quantize_size),
        dequantize_ms=(dequantize, dequantize_size),
        observed=tuple(observed),
    )


def find_owners(flow: tuple[Op, ...], layers: Sequence[str]) -> dict[str, str]:
    """Module paths to the layer that their time is counted for.

    A join, a split or a pool serves the layer that reads its result, whose format decides on the join's; an activation
    belongs to the layer that it stands beside.
    """
    known = set(layers)
    owners: dict[str, str] = {}
    read_by: dict[int, str] = {}
    for op in reversed(flow):
        owner = op.module if op.kind == "conv" else next((read_by[t] for t in op.outputs if t in read_by), "")
        if op.kind in (*JOINS, "view") and owner in known:
            owners.setdefault(op.module, owner)
        if op.kind in ("conv", "view", *JOINS):
            read_by |= dict.fromkeys(op.inputs, owner)
    beside: dict[str, list[str]] = {}
    for layer in layers:
        beside.setdefault(layer.rpartition(".")[0], []).append(layer)
    # Ultralytics' blocks share one activation module, so its path in the flow tells nothing; the exporter's does.
    alone = {f"{parent}.act": members[0] for parent, members in beside.items() if len(members) == 1}
    return owners | alone | {layer: layer for layer in layers}


def owners_of(kernel: KernelTime, owners: Mapping[str, str]) -> tuple[str, ...]:
    """Layers that a kernel's time is counted for in equal parts; an empty name where it belongs to none.

    A kernel that convolves belongs to its convolutions, whatever was fused into it; TensorRT joins convolutions that
    read the same tensor.
    """
    paths = [_module_of(node, owners) for name in kernel.nodes for node in _NODE.findall(name)]
    found = [owners[path] for path in paths if path]
    convolved = tuple(dict.fromkeys(owner for owner in found if owner in paths))
    return convolved or tuple(found[:1]) or ("",)


def _module_of(node: str, owners: Mapping[str, str]) -> str:
    """Module path of a node, or of what is around it; of a repeated call the module that is called."""
    path = layer_of(node)
    while path and path not in owners:
        path = without_call if (without_call := re.sub(r"_\d+$", "", path)) in owners else path.rpartition(".")[0]
    return path


def _by_layer(probe: Probe, owners: Mapping[str, str], layers: Sequence[str]) -> dict[str, float]:
    """Time of each layer, and of the rest under the empty name, stretched to the measured latency."""
    times = dict.fromkeys([*layers, ""], 0.0)
    for kernel in probe.kernels:
        parts = owners_of(kernel, owners)
        for owner in parts:
            times[owner] += kernel.ms / len(parts)
    # A profiler slows each kernel down, and kernels of a pass can overlap.
    stretch = probe.latency_ms / sum(times.values())
    return {layer: stretch * ms for layer, ms in times.items()}
