# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs in TensorBoard, MLflow and Weights & Biases, where Ultralytics' settings have them on (``yolo settings``)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from ultra_mq.core import announce, quiet, warn
from ultra_mq.report.results import Report, VariantResult

PLOTS = ("sensitivity.png", "accuracy.png", "pareto.png")


def log_report(report: Report) -> tuple[str, ...]:
    """Log figures, plots and files of a run wherever an integration is on and installed.

    What a tracker cannot take is a warning: a run is not lost because a server is away.

    Returns:
        Names of the trackers that took it.
    """
    from ultralytics.utils import SETTINGS

    took = []
    for name, log in TRACKERS.items():
        if SETTINGS.get(name) is not True or importlib.util.find_spec(name) is None:
            continue
        try:
            with quiet():
                log(report)
        except Exception as error:  # trackers raise whatever their clients and networks do
            words = " ".join(str(error).split())[:200]
            warn(f"{name} did not take this run: {words}. To leave it out: yolo settings {name}=False")
        else:
            took.append(name)
    if took:
        off = " ".join(f"{name}=False" for name in took)
        announce(f"Logged to {', '.join(took)} (yolo settings {off} leaves it out)")
    return tuple(took)


def figures(report: Report) -> dict[str, float]:
    """Every figure of a run by variant and name."""
    found: dict[str, float] = {}
    for variant in report.variants:
        found |= {f"{variant.name}/{name}": value for name, value in _figures(report, variant).items()}
    return found


def _figures(report: Report, variant: VariantResult) -> dict[str, float]:
    accuracy = variant.engine_accuracy or variant.accuracy
    latency = variant.engine_latency or variant.latency
    found = {
        report.metrics.title: accuracy.main,
        report.metrics.second_title: accuracy.second,
        "agreement": accuracy.agreement,
        "bits": variant.plan.bits if variant.plan else None,
        "size_bytes": float(variant.size_bytes),
        "p50_ms": latency.p50_ms if latency else None,
        "speedup": latency.speedup if latency else None,
        **{f"{metric}_points_lost": loss.points for metric, loss in variant.losses.items()},
    }
    return {name.replace(" ", "_"): float(value) for name, value in found.items() if value is not None}


def _settings(report: Report) -> dict[str, str]:
    """The recipe in one level, as trackers show parameters."""
    flat: dict[str, str] = {}
    for key, value in report.recipe.model_dump(mode="json").items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{key}.{name}" if name else key: str(one)[:500] for name, one in inner}
    return flat


def _plots(report: Report) -> list[Path]:
    return [report.folder / name for name in PLOTS if (report.folder / name).is_file()]


def _log_tensorboard(report: Report) -> None:
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(report.folder))
    for name, value in figures(report).items():
        writer.add_scalar(name, value, 0)
    writer.add_text("report", (report.folder / "report.md").read_text(), 0)
    for path in (*_plots(report), *(report.folder / picture.file for picture in report.pictures)):
        writer.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), 0, dataformats="HWC")
    writer.close()


def _log_mlflow(report: Report) -> None:
    import mlflow

    # Experiment and run as Ultralytics' own callback chooses them.
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or report.recipe.project or "/Shared/Ultralytics")
    name = os.environ.get("MLFLOW_RUN") or report.folder.name
    with mlflow.start_run(run_name=name, nested=mlflow.active_run() is not None):
        mlflow.log_params(_settings(report))
        mlflow.log_metrics(figures(report))
        mlflow.log_artifacts(str(report.folder))


def _log_wandb(report: Report) -> None:
    import wandb

    started = wandb.run is None
    run = wandb.run or wandb.init(
        project=str(report.recipe.project or "ultra-mq").replace("/", "-"),
        name=report.folder.name,
        config=_settings(report),
    )
    images = {path.stem: wandb.Image(str(path)) for path in _plots(report)}
    pictures = [wandb.Image(str(report.folder / one.file), caption=one.caption) for one in report.pictures]
    run.log({**figures(report), **images, **({"pictures": pictures} if pictures else {})})
    artifact = wandb.Artifact(f"ultra-mq-{report.folder.name}", type="model")
    artifact.add_dir(str(report.folder))
    run.log_artifact(artifact)
    if started:
        run.finish()


TRACKERS: dict[str, Callable[[Report], None]] = {
    "tensorboard": _log_tensorboard,
    "mlflow": _log_mlflow,
    "wandb": _log_wandb,
}
"""By the names of Ultralytics' settings, which are those of the packages too."""
