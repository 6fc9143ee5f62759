# SPDX-License-Identifier: AGPL-3.0-or-later
"""Latency of several artefacts, measured side by side so that their ratios can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import psutil

from ultra_mq.core import BackendError, progress, warn
from ultra_mq.measure.gpu import GpuState, read_gpu
from ultra_mq.runtimes import Backend, TensorRt

WARMUP_RUNS = 3
RESAMPLES = 1000
NOISY_SPREAD = 0.05
"""Largest distance of the rounds' medians, as a share of their median, that passes for quiet."""

NOISY_CLOCK = 0.03


@dataclass(frozen=True)
class Latency:
    """Latency of one artefact.

    Attributes:
        runtime: Runtime, version and device it ran on.
        samples: Number of timed passes.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        images_per_second: Throughput of passes one after another.
        speedup: Median of the reference divided by this median, from the same rounds; None for the reference itself
            and where there is none.
        speedup_interval: 95 % interval of ``speedup``.
        spread: Distance of the lowest and highest median of a round, as a share of the median.
        wall_p50_ms: Median wall time with both copies, host to host; None where a pass is all there is.
        device_memory_bytes: GPU memory of engine, context and buffers.
    """

    runtime: dict[str, str]
    samples: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    speedup: float | None
    speedup_interval: tuple[float, float] | None
    spread: float
    wall_p50_ms: float | None = None
    device_memory_bytes: int | None = None


@dataclass(frozen=True)
class Bench:
    """What a bench measured.

    Attributes:
        latencies: Name to latency of every artefact that ran to the end.
        errors: Name to error of those that did not.
        gpu: State of the GPU before and after, where an engine ran on one.
        noise: Reasons to distrust the figures; empty for a quiet run.
        reference: Name that the ratios refer to; None where it did not run to the end.
    """

    latencies: dict[str, Latency]
    errors: dict[str, str]
    gpu: tuple[GpuState | None, GpuState | None]
    noise: tuple[str, ...]
    reference: str | None = None


def time_in_turns(backends: Mapping[str, Backend], rounds: int, runs: int, reference: str | None) -> Bench:
    """Time artefacts in interleaved rounds.

    A machine gets slower and faster over minutes; in every round each artefact has its turn, so that drift falls
    on all of them alike. An artefact that fails drops out, and the others go on.

    Args:
        backends: Name to open artefact.
        rounds: Number of rounds.
        runs: Passes of each artefact a round.
        reference: Name that the ratios refer to; where it fails or is None there are no ratios.
    """
    samples: dict[str, list[list[float]]] = {name: [] for name in backends}
    errors: dict[str, str] = {}
    on_gpu = [backend for backend in backends.values() if isinstance(backend, TensorRt)]
    uuid = on_gpu[0].gpu_uuid if on_gpu else None
    before = read_gpu(uuid) if on_gpu else None
    with progress("Timing", rounds * len(backends)) as advance:
        for turn in range(-1, rounds):
            for name, backend in backends.items():
                if name in errors:
                    continue
                try:
                    passes_ms = backend.time(runs if turn >= 0 else WARMUP_RUNS)
                except BackendError as error:
                    errors[name] = str(error)
                    warn(f"{name}: {error}")
                    continue
                if turn >= 0:
                    samples[name].append(passes_ms)
                    advance(1)
    after = read_gpu(uuid) if on_gpu else None
    measured = {name: np.array(rows) for name, rows in samples.items() if name not in errors and rows}
    known = reference if reference in measured else None
    latencies = {
        name: _summarise(backends[name], values, measured[known] if known and name != known else None)
        for name, values in measured.items()
    }
    return Bench(latencies, errors, (before, after), _noise(latencies, before, after), known)


def _summarise(backend: Backend, values: np.ndarray, reference: np.ndarray | None) -> Latency:
    """Summarise samples in milliseconds, shape (rounds, runs), and hold them against the reference's."""
    p50, p90, p95, p99 = (float(np.percentile(values, q)) for q in (50, 90, 95, 99))
    medians = np.median(values, axis=1)
    on_gpu = backend if isinstance(backend, TensorRt) else None
    return Latency(
        runtime=backend.describe(),
        samples=values.size,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=1e3 * backend.batch / float(values.mean()),
        speedup=None if reference is None else float(np.median(reference)) / p50,
        speedup_interval=None if reference is None else _speedup_interval(reference, values),
        spread=float(medians.max() - medians.min()) / p50,
        wall_p50_ms=float(np.median(on_gpu.wall_ms)) if on_gpu else None,
        device_memory_bytes=on_gpu.device_memory_bytes if on_gpu else None,
    )


def _speedup_interval(reference: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the ratio of medians, by resampling whole rounds, the same ones on both sides.

    Passes of one round are not independent of each other, rounds nearly are (block bootstrap, Kuensch 1989).
    """
    generator = np.random.default_rng(0)
    rounds = len(values)
    draws = generator.integers(rounds, size=(RESAMPLES, rounds))
    ratios = [np.median(reference[draw]) / np.median(values[draw]) for draw in draws]
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def _noise(latencies: Mapping[str, Latency], before: GpuState | None, after: GpuState | None) -> tuple[str, ...]:
    reasons = [
        f"the rounds of {name} differ by {100 * latency.spread:.0f} %"
        for name, latency in latencies.items()
        if latency.spread > NOISY_SPREAD
    ]
    if before and after:
        # Engines that are open, and builders that wait for the next build.
        us = psutil.Process()
        ours = {us.pid, *(child.pid for child in us.children(recursive=True))}
        if others := sorted(set(before.processes + after.processes) - ours):
            reasons.append(f"{len(others)} other processes hold memory on the GPU ({', '.join(map(str, others[:5]))})")
        if after.sm_clock_mhz < before.max_sm_clock_mhz * (1 - NOISY_CLOCK):
            reasons.append(f"the GPU ended at {after.sm_clock_mhz} of {before.max_sm_clock_mhz} MHz")
    return tuple(reasons)
