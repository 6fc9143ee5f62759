# SPDX-License-Identifier: AGPL-3.0-or-later
"""Commands that take a finished artefact to where it is used: predict, package."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ultra_mq.cli.options import FILE, OVERRIDES_HELP, choice, command_options
from ultra_mq.core import console
from ultra_mq.deploy import PackageTarget


@click.command(epilog=OVERRIDES_HELP)
@click.argument("file", metavar="FILE", type=FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@command_options
def predict(file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Let Ultralytics predict with FILE (.pt, .onnx or .engine): source=image.jpg, and its other settings."""
    from ultra_mq.jobs import predict_file

    results = predict_file(file, list(overrides))
    if as_json:
        found = [{"image": result.path, "found": json.loads(result.to_json())} for result in results]
        click.echo(json.dumps(found, indent=2))
        return
    for result in results:
        console.print(f"{result.path}: {result.verbose().rstrip(', ') or 'nothing'}", markup=False, soft_wrap=True)
    if results and results[0].save_dir:
        console.print(f"Pictures: {results[0].save_dir}", markup=False, soft_wrap=True)


@click.command()
@click.argument("source", metavar="RUN|FILE", type=FILE)
@click.option("--for", "target", type=choice(PackageTarget), required=True, help="What shall run it.")
@click.option("--variant", help="Variant of a run folder; the last one by default.")
@click.option("--output", "-o", type=FILE, help="Folder to write; named after the artefact and the target by default.")
@command_options
def package(source: Path, target: PackageTarget, variant: str | None, output: Path | None, as_json: bool) -> None:
    """Write a folder that runs an artefact: a run folder's, an ONNX file or a TensorRT engine."""
    from ultra_mq.deploy import package as write_package
    from ultra_mq.deploy import read_deployable

    made = read_deployable(source, variant)
    folder = write_package(made, target, output or Path(f"{made.name}-{target}"))
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": files}, indent=2))
        return
    console.print(f"{folder}: {', '.join(files)}. Two commands in its README.md run it.", markup=False, soft_wrap=True)


COMMANDS = (predict, package)
