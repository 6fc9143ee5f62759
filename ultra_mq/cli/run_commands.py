# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line: parse, call the pipeline, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ultra_mq import __version__
from ultra_mq.cli import (
    deploy_commands,
    engine_commands,
    measure_commands,
    onnx_commands,
    search_commands,
    setup_commands,
)
from ultra_mq.cli.options import (
    OVERRIDES_HELP,
    budgets,
    choice,
    choices_of,
    command_options,
    cost,
    formats,
    placement,
    recover,
    target,
    trt_python,
)
from ultra_mq.core import ReportError, console
from ultra_mq.quantization import Method
from ultra_mq.session import EngineSettings

if TYPE_CHECKING:
    from ultra_mq.report import Report


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ultra-mq")
def main() -> None:
    """Find a precision for every layer of a YOLO model, under a budget, and prove it on your data."""


@main.command(epilog=OVERRIDES_HELP)
@click.argument("weights")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@budgets
@cost
@target
@click.option("--strict", is_flag=True, help="Refuse bits below what the formats can reach.")
@placement
@formats
@recover
@command_options
def autoquant(
    weights: str, overrides: tuple[str, ...], budgets: dict[str, Any], recover: bool, as_json: bool, **settings: Any
) -> None:
    """Score, plan, quantize, export, prove and report: WEIGHTS under budgets of bits, accuracy or latency."""
    from ultra_mq.jobs import autoquant_recipe, run_recipe

    settings |= {"recover": {"enabled": True}} if recover else {}
    _print_report(run_recipe(autoquant_recipe(weights, budgets, settings, list(overrides))), as_json)


@main.command(epilog=OVERRIDES_HELP)
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@command_options
def run(recipe_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Carry out a YAML RECIPE, for example recipes/compare.yaml."""
    from ultra_mq.jobs import run_recipe
    from ultra_mq.session import load_recipe

    _print_report(run_recipe(load_recipe(recipe_file, list(overrides))), as_json)


@main.command(epilog=OVERRIDES_HELP)
@click.argument("weights")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@budgets
@cost
@target
@click.option("--output", "-o", type=click.Path(path_type=Path), default=Path("plan.yaml"), show_default=True)
@command_options
def plan(
    weights: str, overrides: tuple[str, ...], budgets: dict[str, Any], output: Path, as_json: bool, **settings: Any
) -> None:
    """Write the plan for WEIGHTS under budgets, without making a model of it; edit it and apply it."""
    from ultra_mq.jobs import autoquant_recipe
    from ultra_mq.plan import save_plan
    from ultra_mq.search import find_plan
    from ultra_mq.session import open_session

    recipe = autoquant_recipe(weights, budgets, settings, list(overrides))
    found = find_plan(open_session(recipe), recipe.variants[0])
    save_plan(found, output)
    if as_json:
        click.echo(json.dumps({"plan": str(output), "bits": found.bits, "quantized": found.quantized}))
        return
    floats = [layer.name for layer in found.layers if layer.why == "searched" and layer.name not in found.quantized]
    console.print(f"{output}: {found.bits:.2f} bits, {len(found.quantized)} layers quantized, {len(floats)} in float.")
    console.print(f"In float: {', '.join(floats) or 'none'}", soft_wrap=True)


@main.command(epilog=OVERRIDES_HELP)
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.argument("weights")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@command_options
def apply(plan_file: Path, weights: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Carry out a PLAN file on its WEIGHTS: the same artefacts and report as the run that made it."""
    from ultra_mq.jobs import run_recipe
    from ultra_mq.plan import load_plan
    from ultra_mq.session import make_recipe

    loaded = load_plan(plan_file)
    variants = [{"name": "plan", "bits": loaded.budget_bits or loaded.bits}]
    document = {"model": weights, "name": "apply", "variants": variants, "placement": loaded.placement}
    recipe = make_recipe(document, list(overrides))
    _print_report(run_recipe(recipe, plans={"plan": loaded}), as_json)


@main.command(epilog=OVERRIDES_HELP)
@click.argument("weights")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--bits", type=float, multiple=True, default=(9.0, 10.0), show_default=True, help="Budgets; repeatable.")
@trt_python
@click.option("--target", type=choices_of(EngineSettings, "target"), default="auto", show_default=True)
@placement
@command_options
def compare(
    weights: str,
    overrides: tuple[str, ...],
    bits: tuple[float, ...],
    trt_python: str | None,
    target: str,
    placement: str,
    as_json: bool,
) -> None:
    """FP16, uniform INT8, ModelOpt's ONNX INT8 and mixed precision of WEIGHTS, proven and timed side by side."""
    from ultra_mq.jobs import compare_recipe, run_recipe

    settings = {"engine": {"target": target, "trt_python": trt_python}, "placement": placement}
    _print_report(run_recipe(compare_recipe(weights, bits, settings, list(overrides))), as_json)


@main.command(epilog=OVERRIDES_HELP)
@click.argument("weights")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--method",
    "methods",
    type=choice(Method),
    multiple=True,
    default=get_args(Method),
    show_default=True,
)
@click.option("--images", "image_counts", type=int, multiple=True, default=(32,), show_default=True, help="Repeatable.")
@placement
@command_options
def calib(
    weights: str,
    overrides: tuple[str, ...],
    methods: tuple[Method, ...],
    image_counts: tuple[int, ...],
    placement: str,
    as_json: bool,
) -> None:
    """Compare methods of calibration on WEIGHTS, all layers in INT8."""
    from dataclasses import asdict

    from rich.table import Table

    from ultra_mq.report import points
    from ultra_mq.search import compare_calibrations
    from ultra_mq.session import make_recipe

    recipe = make_recipe({"model": weights, "placement": placement}, list(overrides))
    results = compare_calibrations(recipe, methods, image_counts)
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results], indent=2))
        return
    table = Table(title="Uniform INT8, the best agreement with FP32 first", title_justify="left")
    for column in ("method", "images", "agreement", "points"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for result in results:
        table.add_row(result.method, str(result.images), f"{result.agreement:.3f}", points(result.main))
    console.print(table)


@main.command("open")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@command_options
def open_report(run_folder: Path, as_json: bool) -> None:
    """Open the report of a run folder in the browser."""
    import webbrowser

    page = next((run_folder / name for name in ("report.html", "diff.html") if (run_folder / name).is_file()), None)
    if page is None:
        raise ReportError(
            f"'{run_folder}' has no report.html. Pass the folder of a finished run, runs/detect/autoquant say."
        )
    if as_json:
        click.echo(json.dumps({"report": str(page)}))
    elif not webbrowser.open(page.resolve().as_uri()):
        raise ReportError(f"There is no browser here. The report is one file that can be sent: {page}")


def _print_report(report: Report, as_json: bool) -> None:
    from ultra_mq.report import console_table

    if as_json:
        click.echo(json.dumps({"folder": str(report.folder), **report.to_dict()}, indent=2))
        return
    console.print()
    console.print(console_table(report))
    for line in report.not_built:
        console.print(f"Not built: {line}", markup=False, soft_wrap=True)
    console.print(f"Report: {report.folder / 'report.html'}", markup=False, soft_wrap=True)


for _command in (
    *deploy_commands.COMMANDS,
    *engine_commands.COMMANDS,
    *measure_commands.COMMANDS,
    *onnx_commands.COMMANDS,
    *search_commands.COMMANDS,
    *setup_commands.COMMANDS,
):
    main.add_command(_command)
