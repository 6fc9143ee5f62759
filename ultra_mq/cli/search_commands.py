# SPDX-License-Identifier: AGPL-3.0-or-later
"""Commands that look for the right precision: sensitivity, pareto, sweep, gate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ultra_mq.cli.options import (
    FILE,
    NOT_MET,
    OVERRIDES_HELP,
    choice,
    choices_of,
    command_options,
    cost,
    formats,
    metric,
    placement,
    target,
)
from ultra_mq.core import console
from ultra_mq.plan import ScoreMethod
from ultra_mq.session import Recipe

if TYPE_CHECKING:
    from ultra_mq.session import Metric


@click.command(epilog=OVERRIDES_HELP)
@click.argument("weights")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--method", type=choice(ScoreMethod), default="perturb", show_default=True)
@click.option("--bits", type=float, default=9.0, show_default=True, help="Budget that the actions are for.")
@click.option(
    "--runtime",
    type=click.Choice(["none", *choices_of(Recipe, "runtime").choices]),
    default="none",
    show_default=True,
    help="Also measure what each layer takes there.",
)
@click.option("--truth", default=0, metavar="LAYERS", help="Check the scores: measure so many layers alone.")
@click.option("--limit", default=15, show_default=True, help="Layers to print; all of them are in the files.")
@placement
@formats
@command_options
def sensitivity(
    weights: str, overrides: tuple[str, ...], method: str, bits: float, runtime: str, truth: int, limit: int,
    placement: str, formats: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Show what each layer of WEIGHTS costs, what its quantization hurts, and what to do with it."""
    from dataclasses import asdict

    from rich.table import Table

    from ultra_mq.jobs import make_run_folder
    from ultra_mq.plan import check_bits
    from ultra_mq.report import LAYER_CONSOLE_COLUMNS, make_layer_table, table_cells, write_layer_table
    from ultra_mq.search import learn_latency
    from ultra_mq.session import make_recipe, open_session

    check_bits(bits)
    document = {
        "model": weights, "name": "sensitivity", "placement": placement, "formats": formats,
        "runtime": "auto" if runtime == "none" else runtime, "sensitivity": {"method": method},
    }  # fmt: skip
    session = open_session(make_recipe(document, list(overrides)))
    latency = learn_latency(session, session.target) if runtime != "none" else None
    table = make_layer_table(session, bits, truth, latency)
    folder = make_run_folder(session.recipe, session.model.task)
    write_layer_table(table, folder, Path(weights).name)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), **asdict(table)}, indent=2))
        return
    for title, rows in (("Blocks", table.blocks), ("Layers", table.layers[:limit])):
        shown = Table(title=f"{title}, the most sensitive first", title_justify="left")
        headings, cells = table_cells(rows, LAYER_CONSOLE_COLUMNS)
        for heading in headings:
            words = heading in ("layer", "action")
            shown.add_column(heading.replace("parameters", "par."), justify="left" if words else "right")
        for line in cells:
            shown.add_row(line[0].removesuffix(".conv"), *line[1:])
        console.print(shown)
    if table.rank_correlation is not None:
        console.print(
            f"Rank correlation of the scores with the real loss of {table.checked} layers alone: "
            f"{table.rank_correlation:.2f}"
        )
    console.print(f"All layers: {folder / 'sensitivity.md'}", markup=False, soft_wrap=True)


@click.command()
@click.argument("results", metavar="RESULTS.json", type=FILE)
@click.option("--max-drop", type=float, help="Points of the metric that may be lost.")
@click.option("--max-drop-per-class", type=float, help="Points of the metric that a single class may lose.")
@metric
@click.option("--min-speedup", type=float, help="Smallest speed-up over FP16 (engines) or FP32 (CPU).")
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    help="How sure --max-drop must be kept to, 0.95 say; what the images cannot tell fails then.",
)
@click.option("--variant", help="Variant to check; the last one of the report by default.")
@click.option("--summary", type=FILE, help="File to add a Markdown table to, $GITHUB_STEP_SUMMARY say.")
@command_options
def gate(
    results: Path, max_drop: float | None, max_drop_per_class: float | None, metric: Metric | None,
    min_speedup: float | None, confidence: float | None, variant: str | None, summary: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Hold a report against limits; exits with 1 where one fails beyond the noise of images and timing."""
    from dataclasses import asdict

    from ultra_mq.report import check_report, gate_summary

    if max_drop is None and max_drop_per_class is None and min_speedup is None:
        raise click.UsageError("Name a limit: --max-drop, --max-drop-per-class, --min-speedup, or several.")
    if confidence is not None and max_drop is None:
        raise click.UsageError("--confidence says how sure --max-drop must be kept to. Name that limit too.")
    name, checks = check_report(
        results,
        variant=variant,
        max_drop=max_drop,
        max_drop_per_class=max_drop_per_class,
        metric=metric,
        min_speedup=min_speedup,
        confidence=confidence,
    )
    if as_json:
        click.echo(json.dumps({"variant": name, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        for check in checks:
            console.print(f"{name}: {check}", markup=False, soft_wrap=True)
    if summary:
        with summary.open("a") as file:
            file.write(gate_summary(name, checks))
    if any(check.verdict == "fail" for check in checks):
        sys.exit(NOT_MET)


@click.command(epilog=OVERRIDES_HELP)
@click.argument("weights")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--points", type=click.IntRange(min=1), default=5, show_default=True, help="Plans along the front.")
@cost
@target
@metric
@click.option("--max-drop", type=click.FloatRange(min=0), help="Points that may be lost.")
@click.option(
    "--pick",
    type=choices_of(Recipe, "pick"),
    default="knee",
    show_default=True,
    help="Which model to recommend.",
)
@placement
@formats
@command_options
def pareto(
    weights: str, overrides: tuple[str, ...], points: int, metric: Metric | None, max_drop: float | None,
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """The front of accuracy against latency or bits of WEIGHTS, beside uniform FP16 and INT8, and a pick from it."""
    from dataclasses import asdict

    from ultra_mq.jobs import run_recipe
    from ultra_mq.report import console_table, recommend
    from ultra_mq.runtimes import keep_builders
    from ultra_mq.search import front_plans, front_recipe
    from ultra_mq.session import make_recipe, open_session

    recipe = make_recipe({"model": weights, "name": "pareto", **settings}, list(overrides))
    session = open_session(recipe)
    with keep_builders():
        plans = front_plans(session, points)
        report = run_recipe(front_recipe(session.recipe, plans, max_drop, metric), plans=plans)
    choice = recommend(report)
    if as_json:
        found = asdict(choice) if choice else None
        click.echo(json.dumps({"folder": str(report.folder), "choice": found, **report.to_dict()}, indent=2))
        return
    console.print()
    console.print(console_table(report))
    if choice:
        console.print(f"{choice.pick or 'None'}: {choice.why}", markup=False, soft_wrap=True)
    console.print(f"Report: {report.folder / 'report.html'}", markup=False, soft_wrap=True)


@click.command(epilog=OVERRIDES_HELP)
@click.argument("sweep_file", metavar="SWEEP.yaml", type=FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@command_options
def sweep(sweep_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Run an Optuna study over recipes; run it again to go on after an interruption, or with more trials."""
    from ultra_mq.jobs import best_trials, load_sweep, run_sweep, write_sweep_report

    result = run_sweep(load_sweep(sweep_file, list(overrides)))
    report = write_sweep_report(result)
    best = best_trials(result)
    if as_json:
        rows = [{"trial": trial.number, "values": trial.values, "params": trial.params} for trial in best]
        click.echo(json.dumps({"folder": str(result.folder), "best": rows, "failed": result.failed}, indent=2))
        return
    for trial in best:
        values = ", ".join(
            f"{name} {value:.4g}" for name, value in zip(result.sweep.objectives, trial.values, strict=True)
        )
        console.print(f"Trial {trial.number}: {values}; {trial.params}", markup=False, soft_wrap=True)
    for number, why in result.failed.items():
        console.print(f"Trial {number} failed: {why}", markup=False, soft_wrap=True)
    console.print(f"Report: {report}", markup=False, soft_wrap=True)


COMMANDS = (sensitivity, pareto, sweep, gate)
