# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files of a run measured: accuracy on a target, and latency side by side."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ultra_mq.core import BackendError, sha256_of
from ultra_mq.measure import Accuracy, Bench, evaluate, load_accuracy, save_accuracy, time_in_turns
from ultra_mq.prepare import gpu_index
from ultra_mq.runtimes import Backend, CpuRuntime, open_file
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


def time_artefacts(session: Session, artefacts: Mapping[str, Artefacts], target: Target) -> Bench:
    """Time models side by side on the target, the first one as the reference; what cannot be opened is left out."""
    settings = session.recipe.bench
    runs = settings.engine_runs if target.engine else settings.runs
    broken: dict[str, str] = {}
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
