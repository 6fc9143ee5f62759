# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest

from ultra_mq.session.forecast import Forecast, about, expect_stages
from ultra_mq.session.recipe import make_recipe

MIXED = {"variants": [{"name": "mixed", "bits": 9}], "calibration": {"images": 10}, "sensitivity": {"images": 10}}


def test_the_first_evaluation_tells_how_fast_the_machine_is():
    stages = expect_stages(make_recipe({**MIXED, "bench": {"rounds": 0}}), images=100, layers=80, engine=None)
    names = [stage.name for stage in stages]
    assert names == [
        "Export FP32", "Evaluate", "Calibrate", "Score", "Quantize and export", "Convert to FP16", "Evaluate", "Parity",
    ]  # fmt: skip
    forecast = Forecast(stages)
    forecast.begin("Export FP32")
    forecast.end("Export FP32", 1.0)
    assert forecast.seconds_left is None
    forecast.begin("Evaluate")
    forecast.end("Evaluate", 13.0)  # 130 passes, a tenth of a second each
    # 90 passes to calibrate, 920 to score, 130 to evaluate, 500 for parity; 11 seconds beside them.
    assert forecast.seconds_left == pytest.approx(0.1 * (90 + 920 + 130 + 500) + 11)


def test_what_comes_from_the_cache_is_not_waited_for():
    forecast = Forecast(expect_stages(make_recipe(MIXED), images=100, layers=80, engine="rtx"))
    forecast.begin("Evaluate")
    forecast.end("Evaluate", 13.0)
    forecast.begin("Parity")
    assert [stage.name for stage in forecast.left] == ["Parity", "Build", "Time"]
    forecast.begin("Profile")  # a stage that nobody expected changes nothing
    forecast.end("Profile", 1.0)
    assert [stage.name for stage in forecast.left] == ["Parity", "Build", "Time"]


def test_layers_are_calibrated_and_scored_once():
    variants = [{"name": "a", "bits": 9}, {"name": "b", "bits": 10}, {"name": "c", "precision": "int8"}]
    names = [stage.name for stage in expect_stages(make_recipe({"variants": variants}), 100, 80, None)]
    assert (names.count("Calibrate"), names.count("Score"), names.count("Evaluate")) == (1, 1, 4)


def test_a_search_has_no_forecast():
    assert expect_stages(make_recipe({"variants": [{"name": "a", "max_drop": 1}]}), 100, 80, None) is None


def test_words():
    assert [about(seconds) for seconds in (3, 44, 100, 400)] == ["10 s", "40 s", "2 min", "7 min"]
