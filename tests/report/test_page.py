# SPDX-License-Identifier: AGPL-3.0-or-later
"""report.html in headless Chromium: it loads, draws, answers, and asks nobody for anything."""

import csv
import json

import pytest

from ultra_mq.jobs.pipeline import run_recipe
from ultra_mq.measure.bootstrap import ClassLoss, Drop
from ultra_mq.report.page import ChartSection, ClassTable, Page, write_page
from ultra_mq.session.recipe import make_recipe


@pytest.fixture(scope="module")
def report(weights, shapes, tmp_path_factory):
    """The demo's model, at a small size."""
    document = {
        "model": str(weights), "data": str(shapes), "imgsz": 160, "bench": {"rounds": 2, "runs": 2},
        "calibration": {"images": 8, "bias_correction": 0}, "sensitivity": {"images": 2},
        "evaluation": {"parity": False, "pictures": 3}, "project": str(tmp_path_factory.mktemp("runs")),
        "variants": [{"name": "int8", "precision": "int8"}, {"name": "mixed", "bits": 9}],
    }  # fmt: skip
    return run_recipe(make_recipe(document))


def page_of(**values):
    known = {"title": "m on d", "subtitle": "", "verdicts": ["v"], "columns": ["model"], "rows": [["a"], ["b"]]}
    return Page(**{**known, **values})


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_the_demos_report_loads_and_draws(report, browser, scheme, width):
    page = browser(report.folder / "report.html", scheme=scheme, width=width)
    assert page.problems == []
    assert page.page.title() == "shapes-yolo11n.pt on shapes.yaml"
    for name in ("front", "blocks", "layers"):
        assert page.count(f"#chart-{name} svg") == 1
    assert page.count("figure img") == len(report.pictures) > 0
    loaded = page.page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 100)")
    assert loaded
    # A phone scrolls tables and charts sideways in their own boxes, never the page.
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    assert dark == (scheme == "dark")


def test_choosing_a_block_shows_its_layers_alone(report, browser):
    page = browser(report.folder / "report.html")
    bars = "#chart-layers .mark-rect path"
    before = page.count(bars)
    page.page.locator("#chart-blocks .mark-rect path").nth(2).click()
    page.page.wait_for_function(f"document.querySelectorAll('{bars}').length < {before}")
    assert 0 < page.count(bars) < before


def test_choosing_a_model_marks_its_row(report, browser):
    page = browser(report.folder / "report.html")
    page.page.locator("#chart-front .mark-symbol path").first.click()
    page.page.wait_for_selector("#models tr.picked")
    assert page.count("#models tr.picked") == 1


def test_a_verdict_comes_first_and_classes_are_in_files(report, browser):
    page = browser(report.folder / "report.html")
    first = page.page.inner_text(".verdict")
    assert "points of mAP50-95 (95 %:" in first
    rows = list(csv.DictReader((report.folder / "classes.csv").open()))
    assert {row["class"] for row in rows} == {"circle", "square", "triangle", "star", "cross"}
    results = json.loads((report.folder / "results.json").read_text())
    losses = results["variants"][1]["class_losses"]
    assert set(losses) == {"map", "agreement"}
    drops = [one["loss"]["points"] for one in losses["map"]]
    assert drops == sorted(drops, reverse=True)
    assert results["pictures"][0]["file"].startswith("gallery/")


def test_names_from_outside_are_text(browser, tmp_path):
    """A class, a path or a layer may be called like a script."""
    evil = "<script>document.title='gotcha'</script>"
    values = [{"x": evil, "y": 1}, {"x": "b", "y": 2}]
    spec = {"data": {"values": values}, "mark": "bar", "encoding": {"x": {"field": "x"}, "y": {"field": "y"}}}
    loss = ClassLoss(evil, 9, 0.5, 0.4, Drop(10.0, 5.0, 15.0, 9, 2.0))
    made = page_of(
        rows=[[evil]], verdicts=[evil], charts=[ChartSection("c", evil, evil, spec)],
        classes=[ClassTable(evil, evil, (loss,))],
    )  # fmt: skip
    page = browser(write_page(made, tmp_path, "page.html"))
    assert page.page.title() == "m on d"
    assert page.problems == []
    assert page.text.count("gotcha") >= 5


def test_a_class_is_judged_where_enough_images_hold_it():
    def loss(name, points, low, images):
        return ClassLoss(name, images, 0.5, 0.5 - points / 100, Drop(points, low, points + 2, images, 1.0))

    rows = (
        loss("rare", 30.0, 20.0, 4),
        loss("sure", 5.0, 1.0, 40),
        loss("trifle", 0.05, 0.01, 40),
        loss("x", 1, -1, 40),
    )
    table = ClassTable("int8", "mAP50-95", rows)
    assert [one.name for one in table.classes if one.surely_lost] == ["sure"]
    assert "more mAP50-95 than their interval: sure. Of 3 classes" in table.summary
    assert "0.1 would be among them by chance; 1 in fewer images cannot be judged" in table.summary
