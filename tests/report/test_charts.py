# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a chart says, and when there is none."""

import dataclasses
from pathlib import Path

import pytest

from ultra_mq.measure.accuracy import Accuracy
from ultra_mq.measure.bootstrap import Drop
from ultra_mq.measure.predictions import Classifications
from ultra_mq.plan.precision_plan import LayerPlan
from ultra_mq.report.charts import chart_blocks, chart_front, chart_kernels, chart_layers
from ultra_mq.report.page import ChartSection, Page, write_page
from ultra_mq.report.recommendation import Candidate, Recommendation
from ultra_mq.report.results import VariantResult
from ultra_mq.runtimes.engine import Engine
from ultra_mq.runtimes.inspection import read_inspector

REAL = Path(__file__).parent.parent / "data" / "inspector-trt-8.6.json"


@pytest.fixture
def variant(plan):
    """A variant whose engine TensorRT 8.6 built, by its own inspector; times are ours."""
    layers = read_inspector(REAL.read_text())
    timed = tuple(dataclasses.replace(layer, ms=0.001 * (1 + index % 7)) for index, layer in enumerate(layers))
    engine = Engine(Path("m.engine"), "tensorrt", "8.6.0", "GPU", 1, 1.0, (), "m.onnx", "", {}, timed)
    nothing = Accuracy("classify", {}, 0, None, None, None, Classifications((), None, None))
    return VariantResult("mixed", "m.onnx", None, 1, nothing, plan, engine=engine)


@pytest.fixture
def scores(sensitivity):
    return {layer: max(by_format.values()) for layer, by_format in sensitivity.scores.items()}


def rows(spec):
    return spec["data"]["values"]


def test_blocks_add_up_to_all_of_it(variant, scores):
    spec = chart_blocks(variant, scores)
    assert sum(row["share"] for row in rows(spec)) == pytest.approx(100)
    assert [row["block"] for row in rows(spec)][:3] == ["model.0", "model.1", "model.2"]


def test_layers_say_what_was_planned_and_what_ran(variant, scores):
    spec = chart_layers([variant], scores)
    said = {row["layer"]: row["as"] for row in rows(spec)}
    executed = variant.engine.layer_types
    name = next(name for name in executed if name in scores)
    assert f"runs {executed[name]}" in said[name.removesuffix(".conv")]
    assert "bind" not in spec["params"][1]  # one plan leaves no choice
    wrong = [name for name, _, _ in variant.engine_mismatches if name in scores]
    assert sum(text.endswith("(not as planned)") for text in said.values()) == len(wrong)


def test_the_reader_chooses_the_plan(variant, scores):
    uniform = dataclasses.replace(
        variant.plan, layers=tuple(dataclasses.replace(layer, format="fp16") for layer in variant.plan.layers)
    )
    other = dataclasses.replace(variant, name="fp16", plan=uniform, engine=None)
    plan = chart_layers([variant, other], scores)["params"][1]
    assert plan["bind"]["options"] == ["mixed", "fp16"]
    assert plan["value"] == "mixed"  # colours say nothing of a plan that is all the same


def test_the_slowest_layers_of_an_engine_come_first(variant, tmp_path, browser):
    spec = chart_kernels(variant)
    times = [row["us"] for row in rows(spec)]
    assert times == sorted(times, reverse=True)
    assert len(times) == min(40, len(variant.engine.layers))
    assert {row["type"] for row in rows(spec)} <= {"Int8", "Half", "Float", "reformat", "not said"}
    page = browser(write_page(Page("t", "s", ["v"], ["m"], [["m"]], charts=[
        ChartSection("kernels", "Where the time goes", "", spec)]), tmp_path, "p.html"))  # fmt: skip
    assert page.problems == []
    assert page.count("#chart-kernels .mark-rect path") == len(times)


def test_what_is_not_there_is_not_drawn(variant, scores):
    assert chart_kernels(dataclasses.replace(variant, engine=None)) is None
    lone = dataclasses.replace(variant.plan, layers=(LayerPlan("model.0.conv", "int8", 1.0, 8.0, "searched"),))
    single = dataclasses.replace(variant, plan=lone)
    assert chart_blocks(single, scores) is None
    assert chart_layers([single], scores) is None


def test_a_front_of_one_is_not_drawn():
    one = Candidate("a", 0.5, Drop(0.5, 0.1, 0.9, 100, 0.2), 8.0, None, "", True, ())
    choice = Recommendation("map", "bits", (one,), "a", "", ())
    assert chart_front(choice) is None
    two = dataclasses.replace(one, name="b", loss=None, drop=0.1, cost=16.0, on_front=False)
    spec = chart_front(dataclasses.replace(choice, candidates=(one, two)))
    first, second = rows(spec)
    assert (first["low"], first["lost"], first["high"], first["kind"]) == (0.1, 0.5, 0.9, "recommended")
    assert (second["low"], second["high"], second["kind"]) == (0.1, 0.1, "beaten by another")
