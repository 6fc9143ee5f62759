# SPDX-License-Identifier: AGPL-3.0-or-later
"""Commands that work on files: build, val, bench, inspect."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ultra_mq.cli_options import FILE, OVERRIDES_HELP, command_options, cpu_runtime, trt_python
from ultra_mq.console import console

if TYPE_CHECKING:
    from ultra_mq.backends import CpuRuntime


def build_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of a build."""
    for option in reversed(
        (
            click.option("--target", type=click.Choice(["auto", "tensorrt", "rtx"]), default="auto", show_default=True),
            trt_python,
            click.option(
                "--level", type=click.IntRange(0, 5), help="Optimization level: 0 quick build, 5 fast engine."
            ),
            click.option("--workspace", type=float, metavar="GB", help="Scratch memory of the builder."),
            click.option("--min", "smallest", metavar="SHAPE", help="Smallest input of a dynamic graph: 1x3x320x320."),
            click.option("--opt", "best", metavar="SHAPE", help="Input of a dynamic graph to optimize for."),
            click.option("--max", "largest", metavar="SHAPE", help="Largest input of a dynamic graph."),
            click.option("--version-compatible", is_flag=True, help="Let later versions of TensorRT run the engine."),
            click.option("--hardware-compatible", is_flag=True, help="Let other GPUs from Ampere on run the engine."),
            click.option("--dla", "dla_core", type=int, metavar="CORE", help="Run on this DLA core."),
            click.option("--compute-capability", default="8.9", show_default=True, help="GPU generation for rtx."),
            click.option("--tactic-source", "tactic_sources", multiple=True, help="Kernel library to use; repeatable."),
            click.option("--repairs", default=4, show_default=True, help="Repairs of a graph that does not build."),
            click.option(
                "--timeout", "timeout_s", default=3600.0, show_default=True, help="Seconds without an answer."
            ),
        )
    ):
        function = option(function)
    return function


@click.command()
@click.argument("onnx_file", metavar="MODEL.onnx", type=FILE)
@click.option("--output", "-o", type=FILE, help="Engine file; beside the ONNX file by default.")
@click.option("--image", type=FILE, help="Image for the FP16 conversion that TensorRT 10, 11 and RTX need.")
@build_options
@command_options
def build(
    onnx_file: Path, output: Path | None, image: Path | None, repairs: int, target: str, as_json: bool, **options: Any
) -> None:
    """Build an engine from an FP32 or Q/DQ ONNX file, and repair what the builder cannot do."""
    from pydantic import TypeAdapter

    from ultra_mq.backends.engine import BuildSettings, Engine, Target, choose_runtime
    from ultra_mq.build import build as build_stage
    from ultra_mq.cache import Cache
    from ultra_mq.data import load_image
    from ultra_mq.export import input_shape, load_graph

    shapes = [_shape(options.pop(name)) for name in ("smallest", "best", "largest")]
    if any(shapes) and not all(shapes):
        raise click.UsageError("--min, --opt and --max belong together.")
    imgsz = input_shape(load_graph(onnx_file))[2] or (shapes[1] or (0, 0, 640))[2]

    def settings(chosen: Target) -> BuildSettings:
        return BuildSettings(
            target=chosen,
            python=options["trt_python"],
            workspace_gb=options["workspace"],
            optimization_level=options["level"],
            profile=(shapes[0], shapes[1], shapes[2]) if shapes[0] and shapes[1] and shapes[2] else None,
            tactic_sources=options["tactic_sources"] or None,
            **{
                name: options[name]
                for name in ("version_compatible", "hardware_compatible", "dla_core", "compute_capability", "timeout_s")
            },
        )

    runtime = choose_runtime(target, settings)  # type: ignore[arg-type]
    path = output or onnx_file.with_suffix(".rtx.engine" if runtime.target == "rtx" else ".engine")
    built = build_stage(
        onnx_file,
        path,
        settings(runtime.target),
        runtime=runtime,
        image=load_image(image, imgsz) if image else None,
        max_repairs=repairs,
        timing_caches=Cache().root / "timing",
    )
    engine = built.engine
    if as_json:
        click.echo(TypeAdapter(Engine).dump_json(engine, exclude={"layers"}).decode())
        return
    console.print(f"{path}: {engine.size_bytes / 1e6:.1f} MB in {engine.build_seconds:.0f} s.", soft_wrap=True)
    console.print(
        f"{engine.runtime_name} for {engine.device}; convolutions: {_count(engine.layer_types.values())}",
        soft_wrap=True,
    )
    if engine.repaired:
        console.print(f"Left in float: {', '.join(engine.repaired)}; the graph is {built.onnx}", soft_wrap=True)


@click.command(epilog=OVERRIDES_HELP)
@click.argument("files", nargs=-1, required=True, metavar="FILE... [KEY=VALUE]...")
@click.option("--reference", type=FILE, help="Whose detections the agreement refers to; the first file by default.")
@cpu_runtime
@trt_python
@command_options
def val(
    files: tuple[str, ...], reference: Path | None, runtime: CpuRuntime, trt_python: str | None, as_json: bool
) -> None:
    """Validate ONNX files and engines with Ultralytics' validator: mAP, and agreement with a reference."""
    from contextlib import closing

    from ultra_mq.backends import open_file
    from ultra_mq.data import load_data
    from ultra_mq.errors import BackendError
    from ultra_mq.evaluate import Accuracy, compare, evaluate
    from ultra_mq.recipe import make_recipe
    from ultra_mq.tables import points

    paths = [Path(item) for item in files if "=" not in item]
    recipe = make_recipe({}, [item for item in files if "=" in item])
    reference = reference or (paths[0] if paths else None)
    if reference is None:
        raise click.UsageError("Name at least one file.")
    if reference in paths:
        paths.remove(reference)
    imgsz = recipe.imgsz if any(item.startswith("imgsz=") for item in files) else _image_size(reference, recipe.imgsz)
    data = load_data(recipe.data, imgsz, 32, fraction=recipe.fraction)
    measured: dict[Path, Accuracy] = {}
    errors = []
    for path in [reference, *paths]:
        try:
            with closing(open_file(path, trt_python, runtime=runtime)) as backend:
                measured[path] = evaluate(backend, data, label=f"Evaluating {path.name}")
        except BackendError as error:  # noqa: PERF203
            errors.append(str(error))
            if path == reference:
                raise
    found = {path: compare(accuracy, measured[reference].detections) for path, accuracy in measured.items()}
    images = measured[reference].images
    if as_json:
        rows = [
            {"file": str(path), "map50_95": a.map50_95, "map50": a.map50, "agreement": a.agreement}
            for path, a in found.items()
        ]
        document = {"images": images, "reference": str(reference), "files": rows, "errors": errors}
        click.echo(json.dumps(document, indent=2))
        return
    table = Table(title=f"{images} images; agreement with {reference.name}", title_justify="left")
    for column in ("file", "mAP50-95", "mAP50", "agreement"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for path, accuracy in found.items():
        table.add_row(path.name, points(accuracy.map50_95), points(accuracy.map50), f"{accuracy.agreement:.3f}")
    console.print(table)
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
@command_options
def bench(
    files: tuple[Path, ...], rounds: int, runs: int, reference: Path | None, threads: int, runtime: CpuRuntime,
    trt_python: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Time engines and ONNX files side by side, in rounds, and print their ratios with an interval."""
    from contextlib import ExitStack, closing
    from dataclasses import asdict

    from ultra_mq.backends import open_file
    from ultra_mq.bench import bench as bench_stage
    from ultra_mq.errors import BackendError

    with ExitStack() as stack:
        backends = {}
        broken = {}
        for path in files:
            try:
                backends[str(path)] = stack.enter_context(closing(open_file(path, trt_python, threads, runtime)))
            except BackendError as error:  # noqa: PERF203
                broken[str(path)] = str(error)
        if not backends:
            raise BackendError(" ".join(broken.values()))
        measured = bench_stage(backends, rounds, runs, str(reference) if reference else None)
    errors = {**broken, **measured.errors}
    if as_json:
        click.echo(json.dumps({**asdict(measured), "errors": errors}, indent=2))
    else:
        table = Table(title=f"{rounds} rounds of {runs} passes, in turns", title_justify="left")
        for column in ("file", "p50 ms", "p90", "p95", "p99", "img/s", "ratio (95 %)", "wall"):
            table.add_column(column, justify="left" if column == "file" else "right", overflow="fold")
        for name, found in measured.latencies.items():
            low, high = found.speedup_interval
            times = [f"{value:.4g}" for value in (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms)]
            ratio = f"{found.speedup:.2f} ({low:.2f}-{high:.2f})"
            wall = f"{found.wall_p50_ms:.3g}" if found.wall_p50_ms else "-"
            table.add_row(Path(name).name, *times, f"{found.images_per_second:.0f}", ratio, wall)
        console.print(table)
        for name, found in measured.latencies.items():
            if graph := found.runtime.get("cuda_graph"):
                console.print(f"{Path(name).name}: CUDA graph {graph}", soft_wrap=True)
        if measured.gpu[1]:
            console.print(f"{measured.gpu[1]}", markup=False, soft_wrap=True)
        for reason in measured.noise:
            console.print(f"[yellow]Noisy:[/] {reason}.")
    if errors:
        raise BackendError(" ".join(f"{Path(name).name}: {error}" for name, error in errors.items()))


@click.command()
@click.argument("engine_file", metavar="FILE.engine", type=FILE)
@click.option("--plan", "plan_file", type=FILE, help="Plan to hold the executed precisions against.")
@click.option("--limit", default=0, help="Only the slowest layers, so many.")
@trt_python
@command_options
def inspect(engine_file: Path, plan_file: Path | None, limit: int, trt_python: str | None, as_json: bool) -> None:
    """Show what an engine became: layers, fused nodes, types, times, and where they differ from the plan."""
    from dataclasses import asdict

    from ultra_mq.backends.engine import describe_path, load_engine
    from ultra_mq.backends.tensorrt import read_layers
    from ultra_mq.inspection import executed_types, find_mismatches
    from ultra_mq.plan import load_plan

    described = describe_path(engine_file).exists()
    layers = load_engine(engine_file).layers if described else read_layers(engine_file, trt_python)
    mismatches = find_mismatches(load_plan(plan_file), executed_types(layers)) if plan_file else []
    if as_json:
        click.echo(json.dumps({"layers": [asdict(layer) for layer in layers], "mismatches": mismatches}, indent=2))
        return
    shown = sorted(layers, key=lambda layer: -(layer.ms or 0.0))[:limit] if limit else layers
    table = Table(title=engine_file.name, title_justify="left")
    for column in ("us", "type", "kind", "layer"):
        table.add_column(column, justify="right" if column == "us" else "left", overflow="fold")
    for layer in shown:
        time = f"{1e3 * layer.ms:.1f}" if layer.ms is not None else "-"
        table.add_row(time, layer.precision or "-", layer.kind, layer.name.replace("[", r"\["))
    console.print(table)
    total = sum(layer.ms or 0.0 for layer in layers)
    reformats = [layer for layer in layers if layer.reformat]
    console.print(
        f"{len(layers)} layers, {1e3 * total:.0f} us; {len(reformats)} reformats, "
        f"{1e3 * sum(layer.ms or 0.0 for layer in reformats):.0f} us; convolutions: "
        f"{_count(executed_types(layers).values())}"
    )
    if plan_file:
        for name, planned, executed in mismatches:
            console.print(f"{name}: planned {planned}, executed {executed}")
        if not mismatches:
            console.print("Every layer runs in the precision of the plan.")


COMMANDS = (build, val, bench, inspect)


def _image_size(path: Path, otherwise: int) -> int:
    """Image size in a file's Ultralytics metadata."""
    from ultralytics.nn.backends.base import BaseBackend

    sizes = re.findall(r"\d+", str(BaseBackend.read_metadata(path).get("imgsz", ""))) if path.is_file() else []
    return int(sizes[0]) if sizes else otherwise


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+(x\d+){3}", text):
        raise click.BadParameter(f"'{text}' is not a shape such as 1x3x640x640.")
    return tuple(int(size) for size in text.split("x"))


def _count(types: Any) -> str:
    found = list(types)
    return ", ".join(f"{found.count(name)} {name}" for name in dict.fromkeys(found)) or "none"
