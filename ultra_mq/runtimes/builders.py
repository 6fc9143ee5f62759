# SPDX-License-Identifier: AGPL-3.0-or-later
"""Workers that build engines, kept from one build to the next while a job makes several.

TensorRT loads its kernels once a process: TensorRT 8.6 on an H100 builds YOLO11n again in 23 s where the process is
new, and in 10 s where it has built before (docs/results/latency.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

from ultra_mq.runtimes.worker import Interpreter, Worker

ROOM_BYTES = 8e9
"""Free memory below which no builder is kept: TensorRT 8.6 holds 4 GB of kernels, and some machines have 8 in all."""

_jobs: list[dict[Interpreter, Worker]] = []
"""Idle builders of the job that runs, if any."""

_busy: set[Worker] = set()


@contextlib.contextmanager
def keep_builders() -> Iterator[None]:
    """Keep builders between builds; all are closed at the end of the outermost job."""
    if _jobs:
        yield
        return
    idle: dict[Interpreter, Worker] = {}
    _jobs.append(idle)
    try:
        yield
    finally:
        _jobs.remove(idle)
        for worker in idle.values():
            worker.close()


@contextlib.contextmanager
def open_builder(interpreter: Interpreter) -> Iterator[Worker]:
    """A worker to build with: one that has built before where there is one, and a new one otherwise.

    Raises:
        BackendError: The interpreter is missing, or cannot import TensorRT.
    """
    worker = _jobs[0].pop(interpreter, None) if _jobs else None
    if worker is None or not worker.alive:
        worker = Worker(interpreter)
    _busy.add(worker)
    kept = False
    try:
        yield worker
        # After a failure CUDA may be in any state; what failed begins anew.
        if _jobs and psutil.virtual_memory().available > ROOM_BYTES:
            kept = _jobs[0].setdefault(interpreter, worker) is worker
    finally:
        _busy.discard(worker)
        if not kept:
            worker.close()


def stop_builders() -> None:
    """End every build that is going on, from whichever thread; an interrupted run does not wait for minutes."""
    for worker in list(_busy):
        worker.kill()
