# SPDX-License-Identifier: AGPL-3.0-or-later
"""A profile to the time of each layer: which layer a kernel is counted for, and what the profiler itself costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ultra_mq.core import KernelTime
from ultra_mq.prepare import JOINS, Op, layer_of

_NODE = re.compile(r"/model\.\d+[\w./]*")

LEAST_SHARE = 0.05
"""Share of its profiled time that a kernel keeps at least when the profiler's own part is taken off."""


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


def times_by_layer(
    kernels: Sequence[KernelTime], latency_ms: float, owners: Mapping[str, str], layers: Sequence[str]
) -> dict[str, float]:
    """Milliseconds of each layer, and of the rest under the empty name, which add up to the measured latency.

    A profiler adds about the same to every kernel (4.4 microseconds of 7.5 with TensorRT 8.6 on an H100), so that is
    taken off each; where kernels overlap and add up to less than the pass, they are stretched.

    Args:
        kernels: What the profiler said.
        latency_ms: Latency measured without the profiler.
        owners: From ``find_owners``.
        layers: Layers to count for.
    """
    ran = [kernel for kernel in kernels if kernel.ms > 0]
    ms = np.array([kernel.ms for kernel in ran])
    spent = _without_overhead(ms, latency_ms) if ms.sum() > latency_ms else ms * latency_ms / ms.sum()
    times = dict.fromkeys([*layers, ""], 0.0)
    for kernel, part in zip(ran, spent, strict=True):
        parts = owners_of(kernel, owners)
        for owner in parts:
            times[owner] += float(part) / len(parts)
    return times


def _without_overhead(ms: np.ndarray, total: float) -> np.ndarray:
    """Take the same off every entry until they add up to a total; no entry loses more than nearly all of itself."""
    from scipy.optimize import brentq

    def left(overhead: float) -> np.ndarray:
        found: np.ndarray = np.maximum(ms - overhead, LEAST_SHARE * ms)
        return found

    if LEAST_SHARE * ms.sum() >= total:
        return np.asarray(ms * total / ms.sum())
    return left(brentq(lambda overhead: left(overhead).sum() - total, 0.0, ms.max()))
