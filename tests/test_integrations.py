# SPDX-License-Identifier: AGPL-3.0-or-later
"""What surrounds the package: the GitHub Action run by bash, Dockerfiles read, the notebook executed."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml

from ultra_mq.report.results import SCHEMA

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def action():
    return yaml.safe_load((ROOT / "action.yml").read_text())


@pytest.fixture
def results(tmp_path):
    losses = [
        {"name": name, "labels": 50, "reference": 0.5, "model": 0.4, "loss": {
            "points": points, "low": points - 2, "high": points + 2, "images": images, "deviation": 1.0}}
        for name, points, images in (("rare", 40, 3), ("dog", 8, 60), ("cat", 1, 60))
    ]  # fmt: skip
    latency = {"speedup": 1.3, "speedup_interval": [1.2, 1.4]}
    variants = [{"name": "fp32"}, {"name": "int8", "latency": latency, "class_losses": {"map": losses}}]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"schema": SCHEMA, "variants": variants}))
    return path


def run_gate_step(action, results, **inputs):
    """The last step of the action, with the environment that GitHub would give it."""
    step = action["runs"]["steps"][-1]
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name, expression in step["env"].items():
        key = re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", expression)[1]
        environment[name] = str({"results": results, **inputs}.get(key, action["inputs"][key].get("default", "")))
    summary = results.with_name("summary.md")
    environment["GITHUB_STEP_SUMMARY"] = str(summary)
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, summary.read_text() if summary.exists() else "", done.stderr


def test_the_action_passes_and_says_so(action, results):
    code, summary, _ = run_gate_step(action, results, **{"min-speedup": "1.1", "max-drop-per-class": "9"})
    assert code == 0
    assert "### ultra-mq: int8" in summary
    assert "✅ passes" in summary
    assert "lost by 'dog', the worst of 2 classes," in summary  # nobody is judged by three images


def test_the_action_fails_by_a_class(action, results):
    code, summary, _ = run_gate_step(action, results, **{"max-drop-per-class": "5"})
    assert code == 1
    assert "| 8.00 | 6.00 to 10.00 | 5 | ❌ fails |" in summary
    code, summary, _ = run_gate_step(action, results, **{"max-drop-per-class": "7", "metric": "map"})
    assert code == 0
    assert "inside the noise" in summary


def test_the_action_refuses_what_is_no_report(action, results):
    results.write_text("{}")
    code, summary, error = run_gate_step(action, results, **{"max-drop-per-class": "5"})
    assert (code, summary) == (2, "")
    assert "Pass the results.json" in error


@pytest.mark.parametrize("path", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_dockerfiles_name_what_there_is(path):
    """Read, not built: no daemon here."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    known = {"FROM", "ARG", "RUN", "COPY", "WORKDIR", "ENV", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in lines} <= known
    extras = metadata("ultra-mq").get_all("Provides-Extra")
    for word, rest in lines:
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1])
        if word in ("ENTRYPOINT", "CMD"):
            assert json.loads(rest) in (["ultra-mq"], ["doctor"])
        assert all(extra in extras for extra in re.findall(r'"\.\[(\w+)\]"', rest))


@pytest.mark.slow
def test_the_notebook_runs_on_the_demo(weights, shapes, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "ultra-mq.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    small = {
        "imgsz": 160, "calibration": {"images": 8, "bias_correction": 0}, "sensitivity": {"images": 2},
        "bench": {"rounds": 0}, "engine": {"target": "none"}, "project": str(tmp_path),
        "evaluation": {"parity": False, "pictures": 3},
    }  # fmt: skip
    parameters.source = f"WEIGHTS, DATA, SETTINGS = {str(weights)!r}, {str(shapes)!r}, {small!r}"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("text")
    )
    assert "mixed-9bit mixed-9bit" in printed or "shapes-yolo11n-mixed-9bit.onnx" in printed
    assert "agreement:" in printed
    shown = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/jpeg" in output.get("data", {})
    ]
    assert 1 <= len(shown) <= 3
