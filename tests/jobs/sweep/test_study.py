# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sweeps: what a file may say, and that no death of a process loses a trial or runs one twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ultra_mq.core.errors import RecipeError, SweepError
from ultra_mq.jobs.sweep.executors import LocalExecutor, RayExecutor
from ultra_mq.jobs.sweep.study import open_study, run_sweep
from ultra_mq.jobs.sweep.sweep_file import load_sweep, trial_document, trial_folder
from ultra_mq.jobs.sweep.trial import REQUEST, RESULT, run_trial

TRIALS = int(os.environ.get("ULTRA_MQ_SWEEP_TRIALS", "4"))


@pytest.fixture
def document(weights, shapes, tmp_path):
    return {
        "base": {
            "model": str(weights),
            "data": str(shapes),
            "imgsz": 96,
            "batch": 8,
            "variant": {"bits": 9},
            "calibration": {"images": 8, "bias_correction": 0},
            "sensitivity": {"images": 4, "method": "gradient"},
            "evaluation": {"parity": False},
            "engine": {"target": "none"},
            "bench": {"rounds": 1, "runs": 2},
        },
        "space": {"variant.bits": {"low": 8, "high": 12, "step": 0.5}, "calibration.method": ["mse", "max"]},
        "objectives": ["agreement", "latency"],
        "trials": TRIALS,
        "workers": 2,
        "project": str(tmp_path / "sweeps"),
    }


def write(document, tmp_path, **changes):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**document, **changes}))
    return path


def test_a_trial_is_the_base_with_its_values(document, tmp_path):
    sweep = load_sweep(write(document, tmp_path))
    made = trial_document(sweep, {"variant.bits": 10, "calibration.method": "max"})
    assert made["variants"] == [{"name": "trial", "bits": 10}]
    assert made["calibration"] == {"images": 8, "bias_correction": 0, "method": "max"}
    assert sweep.base["calibration"] == {"images": 8, "bias_correction": 0}
    assert sweep.name == "small"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"trails": 3}, SweepError, "unknown key 'trails', did you mean 'trials'"),
        ({"space": {}}, SweepError, "space"),
        ({"space": {"calibration.metod": ["mse"]}}, RecipeError, "did you mean 'method'"),
        ({"space": {"variant.bits": [17]}}, Exception, r"outside \(0, 16\]"),
        ({"objectives": ["speed"]}, SweepError, "objectives"),
    ],
)
def test_faults_are_found_before_work_starts(document, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        load_sweep(write(document, tmp_path, **changes))


def test_missing_file():
    with pytest.raises(SweepError, match="cannot be read"):
        load_sweep("nowhere.yaml")


def test_another_sweep_in_the_folder_is_refused(document, tmp_path):
    sweep = load_sweep(write(document, tmp_path))
    sweep.folder.mkdir(parents=True)
    (sweep.folder / "sweep.json").write_text("{}")
    with pytest.raises(SweepError, match="holds another sweep"):
        run_sweep(sweep)


def test_a_finished_trial_is_not_run_again(tmp_path):
    (tmp_path / REQUEST).write_text("this is never read")
    (tmp_path / RESULT).write_text(json.dumps({"values": {"map": 1.0}}))
    assert run_trial(tmp_path) == {"values": {"map": 1.0}}


def test_a_recipe_that_cannot_be_carried_out_is_a_result(tmp_path):
    (tmp_path / REQUEST).write_text(json.dumps({"model": "nowhere.pt", "variants": [{"name": "trial", "bits": 9}]}))
    assert "not found" in run_trial(tmp_path)["error"]
    assert (tmp_path / RESULT).exists()


def results(sweep):
    return [trial_folder(sweep, number) for number in range(100) if (trial_folder(sweep, number) / RESULT).exists()]


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def busy(driver):
    """Processes of the driver's trials that have no result yet."""
    found = []
    for pid in Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if "ultra_mq.jobs.sweep.trial" in words and not (Path(words[-2]) / RESULT).exists():
            found.append(int(pid))
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / REQUEST).write_text("{}")
    return tmp_path


def test_a_trial_that_hangs_is_ended(folder, monkeypatch):
    monkeypatch.setattr("ultra_mq.jobs.sweep.executors.COMMAND", ("-c", "import time; time.sleep(600)"))
    executor = LocalExecutor(1, timeout_s=0.3)
    executor.start(folder)
    assert executor.wait() == (folder, "it did not end in 0.3 s")
    assert not executor.running


def test_a_trial_that_crashes_names_its_log(folder, monkeypatch):
    monkeypatch.setattr("ultra_mq.jobs.sweep.executors.COMMAND", ("-c", "import sys; sys.exit('no memory')"))
    executor = LocalExecutor(1, timeout_s=60)
    executor.start(folder)
    assert executor.wait() == (folder, f"its process ended with 1, see '{folder / 'log.txt'}'")
    assert "no memory" in (folder / "log.txt").read_text()


class Ray:
    """As much of Ray as an executor needs: one task that ends, fails, or never does."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

    def __init__(self, ends, result=None):
        self.ends, self.result, self.cancelled = ends, result, []

    def wait(self, tasks, num_returns, timeout):
        return (tasks, []) if self.ends else ([], tasks)

    def get(self, task):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def cancel(self, task, force):
        self.cancelled.append(task)


def on_ray(folder, ray):
    executor = RayExecutor.__new__(RayExecutor)
    executor.ray, executor.timeout_s, executor.running = ray, 5, {"task": folder}
    return executor.wait()


def test_what_ray_says_of_a_failure_is_kept(folder):
    """It was swallowed, and the message named a log that only local trials write."""
    found, why = on_ray(folder, Ray(True, Ray.exceptions.RayError("The worker died of OOM")))
    assert (found, why) == (folder, "The worker died of OOM")
    assert on_ray(folder, Ray(True, {"values": {}})) == (folder, "")
    assert json.loads((folder / RESULT).read_text()) == {"values": {}}


def test_a_cluster_without_room_is_not_waited_for_for_ever(folder):
    ray = Ray(False)
    _, why = on_ray(folder, ray)
    assert "no trial ended in 5 s" in why
    assert ray.cancelled == ["task"]


@pytest.mark.slow
def test_killed_driver_and_killed_worker(document, tmp_path):
    path = write(document, tmp_path)
    sweep = load_sweep(path)
    command = [sys.executable, "-m", "ultra_mq", "sweep", str(path)]
    with (tmp_path / "driver.txt").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: len(results(sweep)) >= 2 and len(busy(driver)) == 2)
        os.kill(driver.pid, signal.SIGKILL)  # the workers live on
        driver.wait()
        driver = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: len(results(sweep)) >= TRIALS // 2 and busy(driver))
        os.kill(busy(driver)[-1], signal.SIGKILL)
        assert driver.wait(timeout=600) == 0
    assert "started again" in (tmp_path / "driver.txt").read_text()
    study = open_study(sweep)
    complete = [trial.number for trial in study.trials if trial.state.name == "COMPLETE"]
    assert len(complete) == TRIALS
    for number in complete:
        folder = trial_folder(sweep, number)
        assert (folder / "log.txt").read_text().count("Finished.") == 1
        assert json.loads((folder / RESULT).read_text())["values"]["latency"] > 0
    assert (sweep.folder / "report.md").exists()
    assert (sweep.folder / "pareto.png").exists()
    # Once more is over at once, and two more trials are two more trials.
    more = load_sweep(path, [f"trials={TRIALS + 1}"])
    assert len([t for t in run_sweep(more).study.trials if t.state.name == "COMPLETE"]) == TRIALS + 1


@pytest.mark.slow
def test_ray_runs_trials(document, tmp_path):
    pytest.importorskip("ray", reason="needs the extra 'sweep'")
    ray = {"gpus_per_trial": 0, "cpus_per_trial": 1}
    result = run_sweep(load_sweep(write(document, tmp_path, trials=1, ray=ray)))
    assert not result.failed
    assert len(results(result.sweep)) == 1
