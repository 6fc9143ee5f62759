# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses
import os
import signal

import numpy as np
import pytest

from ultra_mq.core.errors import BackendError
from ultra_mq.measure.bench import WARMUP_RUNS, _noise, time_in_turns
from ultra_mq.measure.gpu import GpuState
from ultra_mq.runtimes.engine import BuildSettings, find_runtime
from ultra_mq.runtimes.tensorrt import TensorRt
from ultra_mq.runtimes.tensorrt_builder import build_engine


class Clock:
    """A backend whose passes take known times, and which notes the order of its turns."""

    batch = 2

    def __init__(self, name, times_ms, turns, fails_in_turn=None):
        self.name, self.times_ms, self.turns, self.fails_in_turn = name, times_ms, turns, fails_in_turn

    def time(self, runs):
        self.turns.append((self.name, runs))
        if len(self.turns) == self.fails_in_turn:
            raise BackendError("it died")
        return [self.times_ms[index % len(self.times_ms)] for index in range(runs)]

    def describe(self):
        return {"runtime": self.name}


def test_percentiles_and_ratio():
    backends = {"fp32": Clock("fp32", [10.0], []), "int8": Clock("int8", [float(t) for t in range(1, 101)], [])}
    found = time_in_turns(backends, 2, 100, "fp32").latencies
    assert found["fp32"].p50_ms == 10
    assert (found["fp32"].speedup, found["fp32"].speedup_interval) == (None, None)
    assert found["int8"].p50_ms == pytest.approx(50.5)
    assert found["int8"].p90_ms == pytest.approx(90.1, abs=0.5)
    assert found["int8"].p95_ms == pytest.approx(95.1, abs=0.5)
    assert found["int8"].p99_ms == pytest.approx(99, abs=1)
    assert found["int8"].images_per_second == pytest.approx(2e3 / 50.5)
    assert found["int8"].speedup == pytest.approx(10 / 50.5)
    assert found["int8"].samples == 200


def test_artefacts_take_turns_after_a_warm_up():
    turns = []
    time_in_turns({name: Clock(name, [1.0], turns) for name in ("a", "b")}, 2, 5, "a")
    assert turns == [("a", WARMUP_RUNS), ("b", WARMUP_RUNS), ("a", 5), ("b", 5), ("a", 5), ("b", 5)]


def test_ratios_refer_to_the_reference_alone():
    backends = {name: Clock(name, [ms], []) for name, ms in (("a", 1.0), ("b", 2.0))}
    measured = time_in_turns(backends, 2, 3, "b")
    assert (measured.reference, measured.latencies["a"].speedup) == ("b", 2)


@pytest.mark.parametrize("reference", [None, "gone", "broken"])
def test_without_a_reference_there_is_no_ratio(reference):
    """A ratio to something else than was asked for would be taken for the one that was."""
    backends = {name: Clock(name, [1.0], []) for name in ("a", "b")}
    backends["broken"] = Clock("broken", [1.0], [], fails_in_turn=2)
    measured = time_in_turns(backends, 2, 3, reference)
    assert measured.reference is None
    assert [latency.speedup for latency in measured.latencies.values()] == [None, None]


def test_a_lone_artefact_is_not_as_fast_as_itself():
    latency = time_in_turns({"a": Clock("a", [1.0], [])}, 2, 3, "a").latencies["a"]
    assert (latency.speedup, latency.speedup_interval) == (None, None)


def test_the_interval_covers_the_ratio_and_narrows_with_rounds():
    generator = np.random.default_rng(0)

    class Noisy(Clock):
        def time(self, runs):
            return list(self.times_ms[0] * generator.normal(1, 0.02) + generator.normal(0, 0.01, runs))

    def interval(rounds):
        backends = {"a": Noisy("a", [2.0], []), "b": Noisy("b", [1.0], [])}
        return time_in_turns(backends, rounds, 50, "a").latencies["b"].speedup_interval

    wide, narrow = interval(5), interval(60)
    assert wide[0] < 2 < wide[1]
    assert narrow[0] < 2 < narrow[1]
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_drift_that_hits_all_alike_cancels():
    class Drifting(Clock):
        turn = 0

        def time(self, runs):
            self.turn += 1
            return [self.times_ms[0] * (1 + self.turn)] * runs

    backends = {"a": Drifting("a", [3.0], []), "b": Drifting("b", [1.0], [])}
    low, high = time_in_turns(backends, 10, 5, "a").latencies["b"].speedup_interval
    assert low == high == pytest.approx(3)


def test_an_artefact_that_fails_drops_out():
    turns = []
    backends = {
        "a": Clock("a", [1.0], turns),
        "b": Clock("b", [1.0], turns, fails_in_turn=5),
        "c": Clock("c", [1.0], turns),
    }
    found = time_in_turns(backends, 3, 5, "a")
    assert found.errors == {"b": "it died"}
    assert set(found.latencies) == {"a", "c"}
    assert turns.count(("b", 5)) <= 1
    assert turns.count(("c", 5)) == 3


def test_a_noisy_run_is_flagged(monkeypatch):
    class Jumping(Clock):
        def time(self, runs):
            self.turns.append(1)
            return [1.0 + 0.1 * (len(self.turns) % 2)] * runs

    assert time_in_turns({"a": Clock("a", [1.0], [])}, 4, 5, "a").noise == ()
    (reason,) = time_in_turns({"a": Jumping("a", [], [])}, 4, 5, "a").noise
    assert reason.startswith("the rounds of a differ by")
    state = GpuState("H200", "580", 1980, 1980, 40, 0, (1,))
    ours = dataclasses.replace(state, processes=(os.getpid(),))
    assert _noise({}, ours, ours) == ()
    slow = dataclasses.replace(ours, sm_clock_mhz=1500)
    assert _noise({}, state, slow) == (
        "1 other processes hold memory on the GPU (1)", "the GPU ended at 1500 of 1980 MHz",
    )  # fmt: skip


def test_a_worker_that_is_killed_does_not_end_the_bench(stand_in, qdq, tmp_path):
    settings = BuildSettings()
    runtime = find_runtime(settings)
    files = [tmp_path / name for name in ("a.engine", "b.engine")]
    for file in files:
        build_engine(qdq.path, file, {}, settings, runtime)

    class Dying(TensorRt):
        turns = 0

        def time(self, runs):
            self.turns += 1
            if self.turns == 3:
                os.kill(self.pid, signal.SIGKILL)
            return super().time(runs)

    with Dying(files[0], warmup_ms=1) as a, TensorRt(files[1], warmup_ms=1) as b:
        found = time_in_turns({"a": a, "b": b}, 3, 4, "a")
    assert "signal 9 during 'time'" in found.errors["a"]
    assert found.latencies["b"].samples == 12
    assert found.latencies["b"].speedup is None
    assert found.latencies["b"].wall_p50_ms > 0
