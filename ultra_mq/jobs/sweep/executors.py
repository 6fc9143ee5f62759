# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the trials of a sweep run: processes on this machine, or Ray's workers on many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from ultra_mq.core import SweepError, write_text
from ultra_mq.jobs.sweep.trial import REQUEST, RESULT

COMMAND = ("-m", "ultra_mq.jobs.sweep.trial")
LOG = "log.txt"
POLL_S = 0.2


class Executor(Protocol):
    """Runs trials; a trial that ends without ``result.json`` has crashed."""

    def start(self, folder: Path) -> None:
        """Start the trial of a folder."""

    def wait(self) -> tuple[Path, str]:
        """Folder of a trial that has ended, well or not, and where it ended badly what is known of why."""

    def close(self) -> None:
        """End what still runs."""


class LocalExecutor:
    """One process a trial; with as many GPUs as workers, each worker has a GPU of its own.

    Args:
        workers: Trials at once.
        timeout_s: Seconds after which a trial is taken for hung and ended.
    """

    def __init__(self, workers: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.running: dict[Path, tuple[int, float, subprocess.Popen[bytes]]] = {}
        self.slots = list(range(workers))
        self.gpus = _visible_gpus() if workers > 1 else []

    def start(self, folder: Path) -> None:
        """Start the trial of a folder in a process; what it says goes to ``log.txt`` beside the result."""
        slot = self.slots.pop(0)
        environment = dict(os.environ)
        if slot < len(self.gpus):
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot]
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *COMMAND, str(folder)],
                stdout=log,
                stderr=log,
                env=environment,
            )
        self.running[folder] = (slot, time.monotonic() + self.timeout_s, process)

    def wait(self) -> tuple[Path, str]:
        """Folder of a trial whose process has ended, or was ended because it hung."""
        while True:
            for folder, (slot, deadline, process) in self.running.items():
                why = ""
                if time.monotonic() > deadline and process.poll() is None:
                    why = f"it did not end in {self.timeout_s:g} s"
                    process.kill()
                    process.wait()
                if process.poll() is not None:
                    del self.running[folder]
                    self.slots.append(slot)
                    return folder, why or f"its process ended with {process.returncode}, see '{folder / LOG}'"
            time.sleep(POLL_S)

    def close(self) -> None:
        """End the processes; what they have finished by then stays."""
        processes = [process for _, _, process in self.running.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        self.running.clear()


class RayExecutor:
    """One Ray task a trial, each in a process of its own that ends with it, so that GPU memory is free again.

    Args:
        address: Address of a running cluster; None starts Ray on this machine.
        gpus_per_trial: GPUs that a trial has for itself.
        cpus_per_trial: CPUs that a trial counts for.
        timeout_s: Seconds without any trial ending after which all that run are taken for hung.
    """

    def __init__(self, address: str | None, gpus_per_trial: float, cpus_per_trial: float, timeout_s: float) -> None:
        try:
            import ray
        except ImportError as error:
            raise SweepError("Ray is not installed. Install it with: pip install 'ultra-mq[sweep]'") from error
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SweepError(
                f"No Ray cluster answers at '{address}': {error}. Start one with: ray start --head"
            ) from error
        self.ray = ray
        self.timeout_s = timeout_s
        self.running: dict[Any, Path] = {}
        options = {"num_gpus": gpus_per_trial, "num_cpus": cpus_per_trial, "max_calls": 1, "max_retries": 0}
        self.task = ray.remote(**options)(_run_remotely)

    def start(self, folder: Path) -> None:
        """Queue the trial of a folder."""
        self.running[self.task.remote(str(folder), (folder / REQUEST).read_text())] = folder

    def wait(self) -> tuple[Path, str]:
        """Folder of a task that has ended; the result is written here where the machines share no disk."""
        ended, running = self.ray.wait(list(self.running), num_returns=1, timeout=self.timeout_s)
        done = ended[0] if ended else running[0]
        folder = self.running.pop(done)
        if not ended:
            self.ray.cancel(done, force=True)
            return folder, f"no trial ended in {self.timeout_s:g} s; the cluster may have no room for it"
        try:
            result = self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            return folder, " ".join(str(error).split())[:400]
        if not (folder / RESULT).exists():
            write_text(folder / RESULT, json.dumps(result))
        return folder, ""

    def close(self) -> None:
        """Cancel what still runs, and leave the cluster."""
        for task in self.running:
            self.ray.cancel(task, force=True)
        self.running.clear()
        self.ray.shutdown()


def _run_remotely(folder: str, request: str) -> dict[str, Any]:
    from ultra_mq.jobs.sweep.trial import run_trial

    path = Path(folder)
    if not (path / REQUEST).exists():
        write_text(path / REQUEST, request)
    return run_trial(path)


def _visible_gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
