# SPDX-License-Identifier: AGPL-3.0-or-later
"""Trackers take a run where Ultralytics' settings have them on, and never break one."""

from pathlib import Path

import pytest

from ultra_mq.core.terminal import shown_log
from ultra_mq.jobs.pipeline import run_recipe
from ultra_mq.report.trackers import figures, log_report
from ultra_mq.session.recipe import make_recipe


@pytest.fixture(scope="module")
def report(small_weights, shapes, tmp_path_factory):
    document = {
        "model": str(small_weights), "data": str(shapes), "imgsz": 96, "bench": {"rounds": 0},
        "calibration": {"images": 4, "bias_correction": 0}, "sensitivity": {"images": 2}, "engine": {"target": "none"},
        "evaluation": {"parity": False, "pictures": 2}, "project": str(tmp_path_factory.mktemp("runs")),
        "variants": [{"name": "int8", "precision": "int8"}],
    }  # fmt: skip
    return run_recipe(make_recipe(document))


@pytest.fixture
def settings(monkeypatch, tmp_path):
    from ultralytics.utils import SETTINGS

    monkeypatch.chdir(tmp_path)

    def turn_on(*names):
        for name in ("tensorboard", "mlflow", "wandb"):
            monkeypatch.setitem(SETTINGS, name, name in names)

    return turn_on


def test_figures_have_names_that_trackers_take(report):
    found = figures(report)
    assert found["int8/bits"] == 8
    assert found["int8/agreement"] == report.variants[1].accuracy.agreement
    assert found["fp32/mAP50-95"] == report.reference.accuracy.main
    assert "fp32/agreement" not in found


def test_nothing_is_logged_where_all_is_off(report, settings, tmp_path):
    settings()
    assert log_report(report) == ()
    assert not list(tmp_path.iterdir())


def test_tensorboard(report, settings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings("tensorboard")
    assert log_report(report) == ("tensorboard",)
    events = EventAccumulator(str(report.folder))
    events.Reload()
    assert events.Scalars("int8/bits")[0].value == 8
    assert {Path(picture.file).stem for picture in report.pictures} <= set(events.Tags()["images"])


def test_mlflow(report, settings, tmp_path, monkeypatch):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "here")
    settings("mlflow")
    assert log_report(report) == ("mlflow",)
    (run,) = mlflow.search_runs(experiment_names=["here"], output_format="list")
    assert run.data.metrics["int8/bits"] == 8
    assert run.data.params["calibration.images"] == "4"
    names = {entry.path for entry in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"report.html", "results.json", "gallery"} <= names


def test_wandb_without_a_network(report, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings("wandb")
    assert log_report(report) == ("wandb",)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"int8/bits" in file.read_bytes()


def test_a_tracker_that_fails_is_a_warning(report, settings, monkeypatch, capsys):
    settings("tensorboard")

    def fail(_):
        raise RuntimeError("the server is away")

    monkeypatch.setitem(log_report.__globals__["TRACKERS"], "tensorboard", fail)
    with shown_log():
        assert log_report(report) == ()
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "tensorboard did not take this run: the server is away. To leave it out: yolo settings tensorboard=False"
        in said
    )
