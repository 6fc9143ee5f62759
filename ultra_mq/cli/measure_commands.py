# SPDX-License-Identifier: AGPL-3.0-or-later
"""Commands that measure files: val, bench."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from ultra_mq.cli.options import FILE, OVERRIDES_HELP, command_options, cpu_runtime, device, trt_python
from ultra_mq.core import console

if TYPE_CHECKING:
    from ultra_mq.measure import Accuracy, Bench
    from ultra_mq.prepare import Data
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
    """Validate ONNX files and engines with Ultralytics' validator: its metrics, and agreement with a reference."""
    from contextlib import closing
    from dataclasses import replace

    from ultra_mq.core import BackendError, UltraMQError
    from ultra_mq.jobs import data_of, described, take_task
    from ultra_mq.measure import compare, evaluate
    from ultra_mq.prepare import gpu_index
    from ultra_mq.runtimes import open_file, read_exported
    from ultra_mq.session import make_recipe

    paths = [Path(item) for item in files if "=" not in item]
    task, overrides = take_task([item for item in files if "=" in item])
    recipe = make_recipe({}, overrides)
    reference = reference or (paths[0] if paths else None)
    if reference is None:
        raise click.UsageError("Name at least one file.")
    if reference in paths:
        paths.remove(reference)
    gpu = gpu_index(recipe.device)
    measured: dict[Path, Accuracy] = {}
    scanned: dict[str, Data] = {}
    errors = []
    for path in [reference, *paths]:
        try:
            exported = read_exported(path)
            if exported.decodes:
                raise BackendError(
                    f"'{path}' ends in a transformer decoder (RT-DETR), whose outputs are not compared here. "
                    f"Validate it with Ultralytics: RTDETR('{path}').val(data=...)."
                )
            kind = repr(replace(exported, path=Path(), batch=1))
            if kind not in scanned:
                scanned[kind] = data_of(exported, recipe, task)
            data = scanned[kind]
            with closing(open_file(path, trt_python, runtime=runtime, device=gpu)) as backend:
                measured[path] = evaluate(described(backend, data), data, label=f"Evaluating {path.name}")
        except UltraMQError as error:  # noqa: PERF203
            if path == reference:
                raise
            errors.append(str(error))
    against = measured[reference]
    compared = {
        path: compare(accuracy, against.predictions) if accuracy.task == against.task else accuracy
        for path, accuracy in measured.items()
    }
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


COMMANDS = (val, bench)


def _accuracy_table(compared: Mapping[Path, Accuracy], title: str) -> Table:
    from ultra_mq.measure import TASK_METRICS
    from ultra_mq.report import points

    table = Table(title=title, title_justify="left")
    metrics = TASK_METRICS[next(iter(compared.values())).task]
    for column in ("file", metrics.title, metrics.second_title, "agreement"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for path, accuracy in compared.items():
        agreement = "-" if accuracy.agreement is None else f"{accuracy.agreement:.3f}"
        table.add_row(escape(path.name), points(accuracy.main), points(accuracy.second), agreement)
    return table


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
