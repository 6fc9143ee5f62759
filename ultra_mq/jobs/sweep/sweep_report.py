# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a sweep found: its trials as a table and CSV, the best ones, and Optuna's own plots."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultra_mq.core import atomic_path, csv_text, write_text
from ultra_mq.jobs.sweep.study import SweepResult, quiet_optuna
from ultra_mq.jobs.sweep.sweep_file import trial_folder

if TYPE_CHECKING:
    import optuna

REPORT = "report.md"


def write_sweep_report(result: SweepResult) -> Path:
    """Write report.md, trials.csv and the plots into the sweep's folder; returns the report."""
    with quiet_optuna():
        best = best_trials(result)
        write_text(result.folder / "trials.csv", _csv(result))
        drawn = _draw(result)
    objectives, space = result.sweep.objectives, list(result.sweep.space)
    chosen = {trial.number for trial in best}
    lines = [
        f"# Sweep {result.sweep.name}",
        "",
        f"{len(_finished(result))} finished trials, {len(result.failed)} failed. The best ones are in bold: no other "
        f"beats them in all of {', '.join(objectives)}.",
        "",
        f"| trial | {' | '.join(objectives)} | {' | '.join(space)} |",
        f"|{'---|' * (1 + len(objectives) + len(space))}",
    ]
    for trial in _finished(result):
        number = f"**{trial.number}**" if trial.number in chosen else str(trial.number)
        cells = [number, *(f"{value:.4g}" for value in trial.values), *(str(trial.params.get(key)) for key in space)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- Trial {number} failed: {why}" for number, why in result.failed.items())]
    lines += ["", "## Rebuild", "", "```"]
    lines += [
        f"ultra-mq run {trial_folder(result.sweep, trial.number).relative_to(result.folder.resolve())}/run/recipe.yaml"
        for trial in best
    ]
    lines += ["```", "", *(f"![{name}]({name})\n" for name in drawn)]
    write_text(result.folder / REPORT, "\n".join(lines))
    return result.folder / REPORT


def best_trials(result: SweepResult) -> list[optuna.trial.FrozenTrial]:
    """Trials that no other beats in all objectives."""
    return sorted(result.study.best_trials, key=lambda trial: trial.values) if _finished(result) else []


def _finished(result: SweepResult) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return list(result.study.get_trials(states=(TrialState.COMPLETE,)))


def _csv(result: SweepResult) -> str:
    space = list(result.sweep.space)
    rows = ([trial.number, *trial.values, *(trial.params.get(key) for key in space)] for trial in _finished(result))
    return csv_text(["trial", *result.sweep.objectives, *space], rows)


def _draw(result: SweepResult) -> list[str]:
    import matplotlib as mpl

    mpl.use("Agg")
    from optuna.visualization import matplotlib as drawing

    if len(_finished(result)) < 2:
        return []
    names = list(result.sweep.objectives)
    plots: dict[str, Callable[[], Any]] = {}
    if len(names) in (2, 3):
        plots["pareto.png"] = functools.partial(drawing.plot_pareto_front, result.study, target_names=names)
    for index, name in enumerate(names):
        told = {"target": _value(index), "target_name": name}
        plots[f"history-{name}.png"] = functools.partial(drawing.plot_optimization_history, result.study, **told)
        if len(result.sweep.space) > 1:
            plots[f"importances-{name}.png"] = functools.partial(drawing.plot_param_importances, result.study, **told)
    drawn = []
    for file, draw in plots.items():
        try:
            axes = draw()
        except (RuntimeError, ValueError, ImportError):  # too few trials, or all alike: Optuna draws nothing then
            continue
        figure = getattr(axes, "figure", None) or axes[0].figure
        with atomic_path(result.folder / file) as temporary:
            figure.savefig(temporary, dpi=120, bbox_inches="tight")
        drawn.append(file)
    return drawn


def _value(index: int) -> Callable[[Any], float]:
    return lambda trial: float(trial.values[index])
