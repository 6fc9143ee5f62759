# SPDX-License-Identifier: AGPL-3.0-or-later
"""Commands that measure files: val, diff, bench."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from ultra_mq.cli.options import FILE, OVERRIDES_HELP, command_options, cpu_runtime, device, field_option, trt_python
from ultra_mq.core import console
from ultra_mq.session import EvaluationSettings

if TYPE_CHECKING:
    from ultra_mq.measure import Accuracy, Bench
    from ultra_mq.report import ClassTable
    from ultra_mq.runtimes import CpuRuntime


@click.command(epilog=OVERRIDES_HELP)
@click.argument("files", nargs=-1, required=True, metavar="FILE... [KEY=VALUE]...")
@click.option("--reference", type=FILE, help="Whose detections the agreement refers to; the first file by default.")
@cpu_runtime
@trt_python
@command_options
def val(
    files: tuple[str, ...], reference: Path | None, runtime: CpuRuntime, trt_python: str | None, as_json: bool
) -> None:
    """Validate .pt, .onnx and .engine files with Ultralytics' validator, and by agreement with a reference."""
    from ultra_mq.core import BackendError
    from ultra_mq.jobs import evaluate_files, take_task
    from ultra_mq.session import make_recipe

    paths = [Path(item) for item in files if "=" not in item]
    task, overrides = take_task([item for item in files if "=" in item])
    recipe = make_recipe({}, overrides)
    reference = reference or (paths[0] if paths else None)
    if reference is None:
        raise click.UsageError("Name at least one file.")
    if reference in paths:
        paths.remove(reference)
    found = evaluate_files([reference, *paths], recipe, task=task, runtime=runtime, trt_python=trt_python)
    compared, against, errors = found.accuracies, found.accuracies[reference], list(found.errors)
    if as_json:
        rows = [
            {
                "file": str(path), "task": a.task, "main": a.main, "second": a.second, "metrics": a.metrics,
                "agreement": a.agreement, "shift": a.shift,
            }
            for path, a in compared.items()
        ]  # fmt: skip
        document = {"images": against.images, "reference": str(reference), "files": rows, "errors": errors}
        click.echo(json.dumps(document, indent=2))
    else:
        for title in dict.fromkeys(accuracy.task for accuracy in compared.values()):
            shown = {path: accuracy for path, accuracy in compared.items() if accuracy.task == title}
            console.print(_accuracy_table(shown, f"{title}, {against.images} images; agreement with {reference.name}"))
    if errors:
        raise BackendError(" ".join(errors))


@click.command(epilog=OVERRIDES_HELP)
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@field_option(EvaluationSettings, "pictures", "--pictures", type=int)
@cpu_runtime
@trt_python
@command_options
def diff(
    before: Path, after: Path, overrides: tuple[str, ...], pictures: int, runtime: CpuRuntime, trt_python: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Show what AFTER does otherwise than BEFORE (.pt, .onnx, .engine): by class, and in pictures."""
    from ultra_mq.jobs import class_tables, diff_files, take_task
    from ultra_mq.session import make_recipe

    task, rest = take_task(overrides)
    recipe = make_recipe({"name": "diff", "evaluation": {"pictures": pictures}}, rest)
    found = diff_files(before, after, recipe, task=task, runtime=runtime, trt_python=trt_python)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    for table in class_tables(found):
        console.print(_class_table(table))
        console.print(table.summary, markup=False, soft_wrap=True)
    console.print(f"Pictures and all classes: {found.folder / 'diff.html'}", markup=False, soft_wrap=True)


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@click.option("--rounds", default=10, show_default=True, help="Rounds in which all files take turns.")
@click.option("--runs", default=200, show_default=True, help="Passes of each file a round.")
@click.option("--reference", type=FILE, help="What the ratios refer to; the first file by default.")
@click.option("--threads", default=1, show_default=True, help="CPU threads of ONNX files.")
@cpu_runtime
@trt_python
@device
@command_options
def bench(
    files: tuple[Path, ...], rounds: int, runs: int, reference: Path | None, threads: int, runtime: CpuRuntime,
    trt_python: str | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Time engines and ONNX files side by side, in rounds, and print their ratios with an interval."""
    from contextlib import ExitStack, closing
    from dataclasses import asdict

    from ultra_mq.core import BackendError
    from ultra_mq.measure import time_in_turns
    from ultra_mq.prepare import gpu_index
    from ultra_mq.runtimes import open_file

    # One file is one file, however its path is written.
    paths: dict[Path, Path] = {}
    for path in (*files, *([reference] if reference else [])):
        paths.setdefault(path.resolve(), path)
    against = str(paths[(reference or files[0]).resolve()])
    gpu = gpu_index(device)
    with ExitStack() as stack:
        backends = {}
        broken = {}
        for path in paths.values():
            try:
                opened = open_file(path, trt_python, threads, runtime, gpu)
                backends[str(path)] = stack.enter_context(closing(opened))
            except BackendError as error:  # noqa: PERF203
                broken[str(path)] = str(error)
        if not backends:
            raise BackendError(" ".join(broken.values()))
        measured = time_in_turns(backends, rounds, runs, against)
    errors = {**broken, **measured.errors}
    if as_json:
        click.echo(json.dumps({**asdict(measured), "errors": errors}, indent=2))
    else:
        console.print(_latency_table(measured, f"{rounds} rounds of {runs} passes, in turns"))
        for name, latency in measured.latencies.items():
            if graph := latency.runtime.get("cuda_graph"):
                console.print(f"{Path(name).name}: CUDA graph {graph}", soft_wrap=True)
        if measured.gpu[1]:
            console.print(f"{measured.gpu[1]}", markup=False, soft_wrap=True)
        for reason in measured.noise:
            console.print(f"[yellow]Noisy:[/] {reason}.")
    if errors:
        raise BackendError(" ".join(f"{Path(name).name}: {error}" for name, error in errors.items()))


CLASSES_SHOWN = 10
"""Classes that fit a terminal; all of them are in the files."""

COMMANDS = (val, diff, bench)


def _accuracy_table(compared: Mapping[Path, Accuracy], title: str) -> Table:
    from ultra_mq.measure import TASK_METRICS
    from ultra_mq.report import points, share

    table = Table(title=title, title_justify="left")
    metrics = TASK_METRICS[next(iter(compared.values())).task]
    for column in ("file", metrics.title, metrics.second_title, "agreement"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for path, accuracy in compared.items():
        figures = (points(accuracy.main), points(accuracy.second), share(accuracy.agreement))
        table.add_row(escape(path.name), *figures)
    return table


def _class_table(table: ClassTable) -> Table:
    from ultra_mq.report import points, points_text

    shown = Table(title=escape(f"{table.variant}: points of {table.metric} lost, 95 %"), title_justify="left")
    for column in ("class", "objects", "images", "before", "after", "lost"):
        shown.add_column(column, justify="left" if column == "class" else "right")
    for one in [one for one in table.classes if one.resolved][:CLASSES_SHOWN]:
        figures = (points(one.reference), points(one.model), points_text(one.loss))
        shown.add_row(escape(one.name), str(one.labels), str(one.loss.images), *figures)
    return shown


def _latency_table(measured: Bench, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("file", "p50 ms", "p90", "p95", "p99", "img/s", "ratio (95 %)", "wall"):
        table.add_column(column, justify="left" if column == "file" else "right", overflow="fold")
    for name, latency in measured.latencies.items():
        times = [f"{value:.4g}" for value in (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms)]
        ratio = "reference" if name == measured.reference else "-"
        if latency.speedup and latency.speedup_interval:
            ratio = f"{latency.speedup:.2f} ({latency.speedup_interval[0]:.2f}-{latency.speedup_interval[1]:.2f})"
        wall = f"{latency.wall_p50_ms:.3g}" if latency.wall_p50_ms else "-"
        table.add_row(escape(Path(name).name), *times, f"{latency.images_per_second:.0f}", ratio, wall)
    return table
