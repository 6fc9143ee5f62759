# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files of a run measured: accuracy on a target, and latency side by side."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ultra_mq.core import BackendError, sha256_of
from ultra_mq.measure import Accuracy, Bench, evaluate, load_accuracy, save_accuracy, time_in_turns
from ultra_mq.prepare import gpu_index
from ultra_mq.runtimes import Backend, CpuRuntime, Runtime, TensorRt, open_file, stop_builders
from ultra_mq.session.recipe import Recipe
from ultra_mq.session.session import Session
from ultra_mq.session.target import Target

if TYPE_CHECKING:
    from ultra_mq.session.artefacts import Artefacts


def evaluate_file(session: Session, path: Path, label: str, target: Target) -> Accuracy:
    """Accuracy of a file on a target, from the cache where it is known.

    Args:
        session: The run.
        path: ONNX file, or an engine of the target.
        label: Text of the progress bar.
        target: What runs it; on a CPU with all of its threads, since nothing is timed.
    """

    def make(entry: Path) -> None:
        recipe = session.recipe
        runtime = cast(CpuRuntime, "onnxruntime" if target.engine else target.name)
        opened = open_file(path, recipe.engine.trt_python, runtime=runtime, device=gpu_index(recipe.device))
        with closing(opened) as backend, session.stage("Evaluate"):
            save_accuracy(evaluate(backend, session.data, label=label), entry)

    depends_on = {**session.evaluation_key, "file": sha256_of(path), "runtime": target.name, "target": target.about}
    return load_accuracy(session.cache.folder("accuracy", depends_on, make))


def build_engines(session: Session, artefacts: Mapping[str, Artefacts], runtime: Runtime) -> dict[str, str]:
    """Build engines while torch makes the next graphs, side by side on the GPUs of ``engine.build_on``.

    Args:
        session: The run.
        artefacts: Name to what an engine is built of.
        runtime: What to build with.

    Returns:
        Name to error of those that cannot be built.
    """
    devices = session.recipe.engine.build_on or (None,)
    free: queue.Queue[int | None] = queue.Queue()
    for device in devices:
        free.put(device)

    def build(made: Artefacts, number: int) -> None:
        device = free.get()
        try:
            made.build(runtime, number, device)
        finally:
            free.put(device)

    builds: list[tuple[str, Future[None]]] = []
    errors: dict[str, str] = {}
    with ThreadPoolExecutor(len(devices)) as pool:
        try:
            for name, made in artefacts.items():
                # Torch makes the graphs, one after another; builders need no more than them.
                _ = made.graph, made.fp16 if runtime.strongly_typed else None
                builds += [(name, pool.submit(build, made, number)) for number in range(made.tries(runtime))]
            for name, one in builds:
                try:
                    one.result()
                except BackendError as error:  # noqa: PERF203
                    errors[name] = str(error)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_builders()
            raise
    return errors


def time_tries(engines: Sequence[Path], recipe: Recipe) -> list[float]:
    """Median milliseconds of several builds of one graph, timed in turns."""
    with ExitStack() as stack:
        backends = {
            str(number): stack.enter_context(TensorRt(path, recipe.engine.trt_python, device=gpu_index(recipe.device)))
            for number, path in enumerate(engines)
        }
        bench = time_in_turns(backends, max(recipe.bench.rounds, 1), recipe.bench.engine_runs, None)
    if bench.errors:
        raise BackendError(f"A build could not be timed: {next(iter(bench.errors.values()))}")
    return [bench.latencies[name].p50_ms for name in backends]


def time_artefacts(session: Session, artefacts: Mapping[str, Artefacts], target: Target) -> Bench:
    """Time models side by side on the target, the first one as the reference; what cannot be opened is left out."""
    settings = session.recipe.bench
    runs = settings.engine_runs if target.engine else settings.runs
    broken = build_engines(session, artefacts, target.engine) if target.engine else {}
    with ExitStack() as stack:
        backends: dict[str, Backend] = {}
        for name, made in artefacts.items():
            try:
                if name not in broken:
                    backends[name] = stack.enter_context(closing(made.open(target)))
            except BackendError as error:  # noqa: PERF203
                broken[name] = str(error)
        for name, words in broken.items():
            session.warn(f"{name}: {words}")
        with session.stage("Time"):
            measured = time_in_turns(backends, max(settings.rounds, 1), runs, next(iter(artefacts)))
    for reason in measured.noise:
        session.warn(f"The timing on {target.title} is noisy: {reason}.")
    return replace(measured, errors={**broken, **measured.errors})
