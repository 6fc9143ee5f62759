# SPDX-License-Identifier: AGPL-3.0-or-later
import csv

import pytest
from scipy.stats import spearmanr

from ultra_mq.plan.scores import Sensitivity
from ultra_mq.report.layer_table import make_layer_table, sample_layers, write_layer_table
from ultra_mq.session.recipe import make_recipe
from ultra_mq.session.session import open_session


@pytest.fixture(scope="module")
def session(weights, shapes):
    document = {
        "model": str(weights), "data": str(shapes), "imgsz": 160, "calibration": {"images": 8, "bias_correction": 0},
        "sensitivity": {"images": 4}, "variants": [{"name": "m", "bits": 9}],
    }  # fmt: skip
    return open_session(make_recipe(document))


@pytest.fixture(scope="module")
def table(session):
    return make_layer_table(session, bits=10, truth=4)


def test_shares_add_up(table):
    for name in ("score_percent", "parameters_percent", "macs_percent"):
        assert sum(getattr(row, name) for row in table.layers) == pytest.approx(100)
        assert sum(getattr(row, name) for row in table.blocks) == pytest.approx(100)


def test_order_and_actions(table):
    scores = [row.score for row in table.layers]
    assert scores == sorted(scores, reverse=True)
    assert len(table.layers) == 81
    assert table.layers[0].action.startswith("keep in float")
    assert any(row.action.startswith("quantize") for row in table.layers)
    assert all(row.outliers >= 1 for row in table.layers)


def test_scores_are_checked_against_the_truth(table):
    measured = [row for row in table.layers if row.drop is not None]
    assert len(measured) == table.checked == 4
    assert table.rank_correlation == pytest.approx(
        spearmanr([row.score for row in measured], [row.drop for row in measured])[0]
    )


def test_the_sample_covers_the_ranking():
    scores = Sensitivity("outputs", 1, {f"l{number}": {"int8": float(number)} for number in range(11)})
    assert [layer for layer, _ in sample_layers(scores, 3)] == ["l0", "l5", "l10"]
    assert len(sample_layers(scores, 99)) == 11


def test_files(table, tmp_path):
    write_layer_table(table, tmp_path, "shapes")
    rows = list(csv.DictReader((tmp_path / "sensitivity.csv").open()))
    assert [row["name"] for row in rows] == [row.name for row in table.layers]
    text = (tmp_path / "sensitivity.md").read_text()
    assert "Checked on 4 layers: the rank correlation" in text
    assert "| model.2 C3k2 |" in text
    assert (tmp_path / "sensitivity.png").stat().st_size > 10_000
    assert (tmp_path / "blocks.csv").exists()
