# SPDX-License-Identifier: AGPL-3.0-or-later
"""Latency of several artefacts, measured side by side so that their ratios can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ultra_mq.backends import Backend
from ultra_mq.console import progress

WARMUP_RUNS = 3


@dataclass(frozen=True)
class Latency:
    """Latency of one artefact.

    Attributes:
        runtime: Runtime, version and device it ran on.
        samples: Number of timed passes.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        speedup: Median of the reference divided by this median, from the same rounds; 1 for the reference.
    """

    runtime: dict[str, str]
    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    speedup: float


def bench(backends: Mapping[str, Backend], rounds: int, runs: int) -> dict[str, Latency]:
    """Time artefacts in interleaved rounds.

    A machine gets slower and faster over minutes; in every round each artefact has its turn, so that drift falls
    on all of them alike.

    Args:
        backends: Name to open artefact; the first is the reference of the ratios.
        rounds: Number of rounds.
        runs: Passes of each artefact a round.
    """
    samples: dict[str, list[float]] = {name: [] for name in backends}
    with progress("Timing", rounds * len(backends)) as advance:
        for backend in backends.values():
            backend.time(WARMUP_RUNS)
        for _ in range(rounds):
            for name, backend in backends.items():
                samples[name] += backend.time(runs)
                advance(1)
    reference = float(np.median(samples[next(iter(backends))]))
    return {
        name: Latency(
            runtime=backends[name].describe(),
            samples=len(values),
            p50_ms=float(np.median(values)),
            p90_ms=float(np.percentile(values, 90)),
            p99_ms=float(np.percentile(values, 99)),
            speedup=reference / float(np.median(values)),
        )
        for name, values in samples.items()
    }
