# SPDX-License-Identifier: AGPL-3.0-or-later
"""Commands before the first run: init, completion, schema, doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ultra_mq.cli.options import FILE, NOT_MET, command_options
from ultra_mq.core import RecipeError, console

QUESTIONS = {
    "size": ("bits", "How many bits a weight, 8 (all INT8) to 16", 9.0),
    "accuracy": ("max_drop", "How many points of mAP may be lost", 0.5),
    "speed": ("min_speedup", "How many times as fast as float", 1.2),
}
"""What matters most, to the budget, its question and its default."""


@click.command()
@click.argument("recipe_file", metavar="[RECIPE.yaml]", type=FILE, default=Path("recipe.yaml"))
@command_options
def init(recipe_file: Path, as_json: bool) -> None:
    """Ask three questions and write a recipe."""
    import yaml

    from ultra_mq.core import write_text
    from ultra_mq.session import make_recipe, schema_line

    if recipe_file.exists():
        raise RecipeError(f"'{recipe_file}' exists already. Name another file: ultra-mq init other.yaml")
    weights = click.prompt("Trained weights", default="yolo11n.pt", err=True)
    data = click.prompt("Data, as Ultralytics takes it", default="coco128.yaml", err=True)
    matters = click.prompt(
        "What matters most", type=click.Choice(list(QUESTIONS)), default="accuracy", show_choices=True, err=True
    )
    budget, question, default = QUESTIONS[matters]
    value = click.prompt(question, type=float, default=default, err=True)
    document: dict[str, Any] = {
        "model": weights,
        "data": data,
        "variants": [{"name": f"{matters}-{value:g}", budget: value}],
    }
    if matters == "speed":
        document["cost_model"] = "latency"
    make_recipe(dict(document))
    write_text(recipe_file, f"{schema_line('recipe')}\n{yaml.safe_dump(document, sort_keys=False)}")
    if as_json:
        click.echo(json.dumps({"recipe": str(recipe_file), **document}))
    else:
        console.print(f"Wrote {recipe_file}. Run it: ultra-mq run {recipe_file}", markup=False, soft_wrap=True)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion of SHELL: eval "$(ultra-mq completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "ultra-mq", "_ULTRA_MQ_COMPLETE").source())


@click.command()
@click.argument("kind", type=click.Choice(["recipe", "plan"]))
def schema(kind: str) -> None:
    """Print the JSON Schema of recipes or plans, for editors that check and complete YAML."""
    from ultra_mq.session import schema_file

    click.echo(schema_file(kind).read_text(), nl=False)


@click.command()
@command_options
def doctor(as_json: bool) -> None:
    """Show what this machine can do, what to install for the rest, and what to run next."""
    from dataclasses import asdict

    from ultra_mq.cli.doctor import can_run, diagnose, doctor_table, next_command

    checks = diagnose()
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        console.print(doctor_table(checks))
        word = "can" if can_run(checks) else "cannot"
        console.print(
            f"\n'ultra-mq autoquant yolo11n.pt' {word} run here. Next: {next_command(checks)}",
            markup=False,
            soft_wrap=True,
        )
    if not can_run(checks):
        sys.exit(NOT_MET)


COMMANDS = (init, completion, schema, doctor)
