# SPDX-License-Identifier: AGPL-3.0-or-later
"""The solver's limits; its answers are tested with the plans."""

from types import SimpleNamespace

import numpy as np
import pytest

from ultra_mq.core.errors import BudgetError
from ultra_mq.plan.solve import OUT_OF_TIME, Choices, solve_choice


def choices(count=6):
    scores = {f"l{i}": {"fp16": 0.0, "int8": float(i + 1)} for i in range(count)}
    return Choices(scores, {"weights": dict.fromkeys(scores, 1.0)}, tuple((name,) for name in scores))


def interrupted(monkeypatch, x):
    result = SimpleNamespace(x=x, status=OUT_OF_TIME, mip_gap=0.25)
    monkeypatch.setattr("scipy.optimize.milp", lambda *_, **__: result)


def test_out_of_time_without_a_plan_is_not_called_infeasible(monkeypatch):
    """It was: the reader was told to raise --bits, which may change nothing."""
    interrupted(monkeypatch, None)
    with pytest.raises(BudgetError, match="found no plan in 300 s; it does not know"):
        solve_choice(choices(), "score", {"weights": 12})


def test_out_of_time_with_a_plan_is_not_called_the_optimum(monkeypatch, caplog):
    interrupted(monkeypatch, np.tile([0.0, 1.0], 6))
    assert set(solve_choice(choices(), "weights", {}).values()) == {"int8"}
    assert "25 % from the optimum at most; another machine may find another plan" in caplog.text


def test_nothing_within_the_limits():
    assert solve_choice(choices(), "score", {"weights": 7}) is None


def test_the_solver_is_silent(capfd):
    solve_choice(choices(40), "score", {"weights": 11})
    assert capfd.readouterr() == ("", "")
