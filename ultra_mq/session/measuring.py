# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files of a run measured: accuracy on a target, and latency side by side."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ultra_mq.core import BackendError, logger, sha256_of
from ultra_mq.measure import Accuracy, Bench, evaluate, load_accuracy, save_accuracy, time_in_turns
from ultra_mq.prepare import gpu_index
from ultra_mq.runtimes import Backend, CpuRuntime, Runtime, TensorRt, open_file
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


def build_engines(session: Session, artefacts: Iterable[Artefacts], runtime: Runtime) -> None:
    """Build engines side by side, one on each GPU of ``engine.build_on``; what fails there fails again when asked for.

    Args:
        session: The run.
        artefacts: What to build the engines of.
        runtime: What to build with.
    """
    devices = session.recipe.engine.build_on
    if devices is None or runtime.target != "tensorrt":
        return
    free: queue.Queue[int] = queue.Queue()
    for device in devices:
        free.put(device)

    def build(made: Artefacts, number: int) -> None:
        device = free.get()
        try:
            made.build(runtime, number, device)
        except BackendError as error:
            logger.debug("%s", error)
        finally:
            free.put(device)

    waiting = []
    with ThreadPoolExecutor(len(devices)) as pool:
        for made in artefacts:
            # Torch makes the graphs, one after another; builders need no more than them.
            _ = made.graph, made.fp16 if runtime.strongly_typed else None
            waiting += [pool.submit(build, made, number) for number in range(made.tries(runtime))]
        for one in waiting:
            one.result()


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
    broken: dict[str, str] = {}
    if target.engine:
        build_engines(session, artefacts.values(), target.engine)
    with ExitStack() as stack:
        backends: dict[str, Backend] = {}
        for name, made in artefacts.items():
            try:
                backends[name] = stack.enter_context(closing(made.open(target)))
            except BackendError as error:  # noqa: PERF203
                session.warn(f"{name}: {error}")
                broken[name] = str(error)
        with session.stage("Time"):
            measured = time_in_turns(backends, max(settings.rounds, 1), runs, next(iter(artefacts)))
    for reason in measured.noise:
        session.warn(f"The timing on {target.title} is noisy: {reason}.")
    return replace(measured, errors={**broken, **measured.errors})
