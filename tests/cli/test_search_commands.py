# SPDX-License-Identifier: AGPL-3.0-or-later
"""Budgets of latency on the command line, on a runtime that really fuses INT8."""

import csv
import json

import pytest
import yaml
from click.testing import CliRunner

from ultra_mq.cli import main


@pytest.fixture
def small(weights, shapes, tmp_path):
    return [
        str(weights), f"data={shapes}", "imgsz=160", "batch=8", "calibration.images=8", "calibration.bias_correction=0",
        "sensitivity.images=4", "latency.probes=1", "bench.rounds=2", "bench.runs=3", "engine.target=none",
        "evaluation.parity=false", f"project={tmp_path}",
    ]  # fmt: skip


def run(*arguments):
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_loss_on_openvino(small, tmp_path):
    budgets = ["--max-drop", "5", "--metric", "agreement", "--cost", "latency", "--runtime", "openvino"]
    found = run("autoquant", *budgets, *small, "name=drop")["variants"][1]["search"]
    assert found["runtime"] == "openvino"
    # Uniform INT8, the probes, which are built already, and as many builds as are allowed.
    assert found["evaluations"] <= 1 + 4 + 6
    held = [step for step in found["steps"] if step["drop"] is not None and step["drop"] <= 5 and step["latency_ms"]]
    surely = [step["speedup"] for step in held if (step["speedup_interval"] or [1])[0] >= 1]
    assert found["chosen"]["drop"] <= 5
    assert found["chosen"]["speedup"] >= max(surely) / 1.01 - 1e-9
    report = (tmp_path / "drop" / "report.md").read_text()
    assert "## Search of drop-5" in report
    # Where nothing could win the race, a probe's is the only prediction: too few for a rank correlation.
    predictions = len(found["predictions"])
    assert f"Latencies predicted, of {predictions} model" in report
    assert ("measurement: rank correlation" in report) == (predictions > 2)
    assert "## Recommendation" in report
    plans = [yaml.safe_load(path.read_text()) for path in (tmp_path / "drop" / "search").glob("*.yaml")]
    assert len(plans) == len(found["steps"])
    assert all(plan["predicted_ms"] > 0 and plan["budget"] == {"max_drop": 5} for plan in plans)


@pytest.mark.slow
def test_front_on_openvino(small, tmp_path):
    made = run("pareto", "--points", "1", "--cost", "latency", "--runtime", "openvino", *small, "name=front")
    assert [variant["name"] for variant in made["variants"]][:3] == ["fp32", "fp16", "int8"]
    assert made["choice"]["unit"] == "ms"
    rows = list(csv.DictReader((tmp_path / "front" / "pareto.csv").open()))
    assert [float(row["ms"]) for row in rows] == sorted(float(row["ms"]) for row in rows)
    assert made["choice"]["pick"] in {row["model"] for row in rows if row["on_front"] == "True"}
    assert (tmp_path / "front" / "pareto.png").stat().st_size > 10_000
