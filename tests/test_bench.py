# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest

from ultra_mq.bench import WARMUP_RUNS, bench


class Clock:
    """A backend whose passes take known times, and which notes the order of its turns."""

    def __init__(self, name, times_ms, turns):
        self.name, self.times_ms, self.turns = name, times_ms, turns

    def time(self, runs):
        self.turns.append((self.name, runs))
        return [self.times_ms[index % len(self.times_ms)] for index in range(runs)]

    def describe(self):
        return {"runtime": self.name}


def test_percentiles_and_ratio():
    backends = {"fp32": Clock("fp32", [10.0], []), "int8": Clock("int8", [float(t) for t in range(1, 101)], [])}
    found = bench(backends, rounds=2, runs=100)
    assert found["fp32"].p50_ms == 10
    assert found["fp32"].speedup == 1
    assert found["int8"].p50_ms == pytest.approx(50.5)
    assert found["int8"].p90_ms == pytest.approx(90.1, abs=0.5)
    assert found["int8"].p99_ms == pytest.approx(99, abs=1)
    assert found["int8"].speedup == pytest.approx(10 / 50.5)
    assert found["int8"].samples == 200


def test_artefacts_take_turns_after_a_warm_up():
    turns = []
    bench({name: Clock(name, [1.0], turns) for name in ("a", "b")}, rounds=2, runs=5)
    assert turns == [("a", WARMUP_RUNS), ("b", WARMUP_RUNS), ("a", 5), ("b", 5), ("a", 5), ("b", 5)]
