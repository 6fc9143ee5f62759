# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sweeps over recipes: an Optuna study whose trials survive the death of the driver and of any worker.

The driver alone asks and tells the study; workers only run folders (see ``trial.py``). A driver that starts again finds
the trials that were running, takes the results that were finished meanwhile, and runs the rest in the same folders.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ultra_mq.core import SweepError, progress, warn, write_text
from ultra_mq.jobs.sweep.executors import Executor, LocalExecutor, RayExecutor
from ultra_mq.jobs.sweep.sweep_file import Range, Sweep, Value, trial_document, trial_folder
from ultra_mq.jobs.sweep.trial import REQUEST, RESULT

if TYPE_CHECKING:
    import optuna

ATTEMPTS = 3
"""How often a trial is started that ends without a result."""

JOURNAL = "study.journal"
HIGHER_IS_BETTER = ("map", "agreement")


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        sweep: What was asked.
        study: Optuna's study.
        folder: Folder with the trials and the report.
        failed: Trial number to what went wrong.
    """

    sweep: Sweep
    study: optuna.Study
    folder: Path
    failed: dict[int, str]


def run_sweep(sweep: Sweep) -> SweepResult:
    """Run a sweep to its number of trials, from where an earlier run of it ended.

    Raises:
        SweepError: Optuna or Ray is missing, another run drives the same sweep, or another sweep has its folder.
    """
    with _drive(sweep), quiet_optuna():
        study = open_study(sweep)
        ray = sweep.ray
        executor: Executor = (
            RayExecutor(ray.address, ray.gpus_per_trial, ray.cpus_per_trial, sweep.trial_timeout_s)
            if ray
            else LocalExecutor(sweep.workers, sweep.trial_timeout_s)
        )
        try:
            _run_trials(sweep, study, executor)
        finally:
            executor.close()
        return SweepResult(sweep, study, sweep.folder, _failures(sweep, study))


def open_study(sweep: Sweep) -> optuna.Study:
    """The study of a sweep, made where it does not exist.

    Raises:
        SweepError: Optuna is missing, or the database cannot be opened.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError as error:
        raise SweepError("Optuna is not installed. Install it with: pip install 'ultra-mq[sweep]'") from error
    samplers = {
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=sweep.seed, population_size=max(4, sweep.trials // 4)),
        "tpe": lambda: optuna.samplers.TPESampler(seed=sweep.seed, constant_liar=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=sweep.seed),
    }
    journal = str(sweep.folder / JOURNAL)
    try:
        storage: Any = sweep.storage or optuna.storages.JournalStorage(
            JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal))
        )
        return optuna.create_study(
            storage=storage,
            sampler=samplers[sweep.sampler](),
            study_name=sweep.name,
            directions=["maximize" if name in HIGHER_IS_BETTER else "minimize" for name in sweep.objectives],
            load_if_exists=True,
        )
    except Exception as error:
        raise SweepError(f"The study '{sweep.name}' cannot be opened: {error}. Check 'storage'.") from error


def _run_trials(sweep: Sweep, study: optuna.Study, executor: Executor) -> None:
    from optuna.trial import TrialState

    attempts: dict[Path, int] = {}
    numbers: dict[Path, int] = {}

    def start(number: int) -> None:
        folder = trial_folder(sweep, number)
        numbers[folder] = number
        attempts[folder] = attempts.get(folder, 0) + 1
        executor.start(folder)

    waiting = []
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if (trial_folder(sweep, trial.number) / REQUEST).exists():
            waiting.append(trial.number)
        else:  # the driver died before it had chosen the values
            study.tell(trial.number, state=TrialState.FAIL)
    ended = (TrialState.COMPLETE, TrialState.FAIL)
    # A trial without a folder never ran and does not count.
    done = sum((trial_folder(sweep, t.number) / RESULT).exists() for t in study.get_trials(states=ended))
    with progress(f"Sweep {sweep.name}", sweep.trials) as advance:
        advance(done)
        while done < sweep.trials:
            while len(numbers) < sweep.workers and done + len(numbers) < sweep.trials:
                start(waiting.pop(0) if waiting else _ask(sweep, study))
            folder, why = executor.wait()
            number = numbers.pop(folder)
            if not (folder / RESULT).exists() and attempts[folder] < ATTEMPTS:
                warn(f"trial {number} ended without a result and is started again: {why}.")
                waiting.insert(0, number)
                continue
            _tell(sweep, study, number, folder, why)
            done += 1
            advance(1)


def _ask(sweep: Sweep, study: optuna.Study) -> int:
    """Choose the values of a new trial and write them into its folder."""
    trial = study.ask()
    values = {key: _suggest(trial, key, options) for key, options in sweep.space.items()}
    request = json.dumps(trial_document(sweep, values), indent=1)
    write_text(trial_folder(sweep, trial.number) / REQUEST, request)
    return int(trial.number)


def _tell(sweep: Sweep, study: optuna.Study, number: int, folder: Path, why: str) -> None:
    from optuna.trial import TrialState

    if not (folder / RESULT).exists():
        write_text(
            folder / RESULT, json.dumps({"error": f"it ended {ATTEMPTS} times without a result, at last because {why}"})
        )
    values = json.loads((folder / RESULT).read_text()).get("values", {})
    measured = [values.get(name) for name in sweep.objectives]
    if None in measured:
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, measured)


def _failures(sweep: Sweep, study: optuna.Study) -> dict[int, str]:
    from optuna.trial import TrialState

    found = {}
    for trial in study.get_trials(states=(TrialState.FAIL,)):
        path = trial_folder(sweep, trial.number) / RESULT
        if path.exists():
            missing = f"has no {' or no '.join(sweep.objectives)}; raise bench.rounds, or choose other objectives"
            found[trial.number] = json.loads(path.read_text()).get("error", missing)
    return found


def _suggest(trial: optuna.Trial, key: str, options: list[Value] | Range) -> Value:
    if isinstance(options, Range):
        whole = all(float(x).is_integer() for x in (options.low, options.high, options.step or 1)) and options.step
        if whole:
            return int(trial.suggest_int(key, int(options.low), int(options.high), step=int(options.step or 1)))
        return float(trial.suggest_float(key, options.low, options.high, step=options.step, log=options.log))
    chosen: Value = trial.suggest_categorical(key, options)
    return chosen


@contextmanager
def _drive(sweep: Sweep) -> Iterator[None]:
    """Be the only driver of a sweep, in a folder that belongs to it."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(sweep.folder / "driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SweepError(f"Another process drives the sweep in '{sweep.folder}'. Wait for it, or stop it.") from error
    try:
        # A storage's URL may hold a password, which is not for a file.
        free = {"trials", "workers", "ray", "storage", "trial_timeout_s"}
        asked = sweep.model_dump(mode="json", exclude=free)
        kept = sweep.folder / "sweep.json"
        if kept.exists() and json.loads(kept.read_text()) != asked:
            raise SweepError(
                f"'{sweep.folder}' holds another sweep. Choose another name=..., or remove it; only "
                f"{', '.join(sorted(free))} may change between runs."
            )
        write_text(kept, json.dumps(asked, indent=1))
        yield
    finally:
        lock.release()


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's log and its warnings about experimental parts to itself."""
    try:
        import optuna
    except ImportError:  # said where it is needed
        yield
        return
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    optuna.logging.set_verbosity(before)
