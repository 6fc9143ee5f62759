# SPDX-License-Identifier: AGPL-3.0-or-later
"""Commands on engines: build, inspect."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ultra_mq.cli.options import (
    FILE,
    command_options,
    device,
    field_option,
    trt_python,
)
from ultra_mq.core import console
from ultra_mq.runtimes import BuildOptions
from ultra_mq.session import EngineSettings

if TYPE_CHECKING:
    pass


def build_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of a build."""
    for option in reversed(
        (
            click.option("--target", type=click.Choice(["auto", "tensorrt", "rtx"]), default="auto", show_default=True),
            trt_python,
            device,
            field_option(BuildOptions, "optimization_level", "--level", "optimization_level", type=int),
            field_option(BuildOptions, "workspace_gb", "--workspace", "workspace_gb", type=float, metavar="GB"),
            click.option("--min", "smallest", metavar="SHAPE", help="Smallest input of a dynamic graph: 1x3x320x320."),
            click.option("--opt", "best", metavar="SHAPE", help="Input of a dynamic graph to optimize for."),
            click.option("--max", "largest", metavar="SHAPE", help="Largest input of a dynamic graph."),
            field_option(BuildOptions, "version_compatible", "--version-compatible", is_flag=True),
            field_option(BuildOptions, "hardware_compatible", "--hardware-compatible", is_flag=True),
            field_option(BuildOptions, "dla_core", "--dla", "dla_core", type=int, metavar="CORE"),
            field_option(BuildOptions, "compute_capability", "--compute-capability"),
            field_option(BuildOptions, "tactic_sources", "--tactic-source", "tactic_sources", multiple=True),
            field_option(EngineSettings, "repairs", "--repairs"),
            field_option(BuildOptions, "timeout_s", "--timeout", "timeout_s", type=float),
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
    onnx_file: Path, output: Path | None, image: Path | None, repairs: int, target: str, device: str, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Build an engine from an FP32 or Q/DQ ONNX file, and repair what the builder cannot do."""
    from pydantic import TypeAdapter

    from ultra_mq.core import Cache, RecipeError, validate
    from ultra_mq.jobs import image_for
    from ultra_mq.prepare import gpu_index
    from ultra_mq.runtimes import BuildSettings, Engine, EngineTarget, choose_runtime, find_runtime
    from ultra_mq.runtimes import build as build_stage

    shapes = [_shape(options.pop(name)) for name in ("smallest", "best", "largest")]
    if any(shapes) and not all(shapes):
        raise click.UsageError("--min, --opt and --max belong together.")
    options["tactic_sources"] = options["tactic_sources"] or None

    def settings(chosen: EngineTarget) -> BuildSettings:
        document = {
            **options,
            "target": chosen,
            "device": gpu_index(device),
            "profile": shapes if all(shapes) else None,
        }
        return validate(TypeAdapter(BuildSettings), document, "the options of the build", RecipeError)

    runtime = choose_runtime(target, lambda chosen: find_runtime(settings(chosen)))  # type: ignore[arg-type]
    path = output or onnx_file.with_suffix(".rtx.engine" if runtime.target == "rtx" else ".engine")
    built = build_stage(
        onnx_file,
        path,
        settings(runtime.target),
        runtime=runtime,
        image=image_for(onnx_file, image, shapes[1]),
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


@click.command()
@click.argument("engine_file", metavar="FILE.engine", type=FILE)
@click.option("--plan", "plan_file", type=FILE, help="Plan to hold the executed precisions against.")
@click.option("--limit", default=0, help="Only the slowest layers, so many.")
@trt_python
@device
@command_options
def inspect(
    engine_file: Path, plan_file: Path | None, limit: int, trt_python: str | None, device: str, as_json: bool
) -> None:
    """Show what an engine became: layers, fused nodes, types, times, and where they differ from the plan."""
    from dataclasses import asdict

    from ultra_mq.plan import load_plan
    from ultra_mq.prepare import gpu_index
    from ultra_mq.runtimes import engine_target, executed_types, find_mismatches, load_engine, read_layers

    if engine_target(engine_file):
        layers = load_engine(engine_file).layers
    else:
        layers = read_layers(engine_file, trt_python, gpu_index(device))
    planned = load_plan(plan_file).by_layer if plan_file else {}
    mismatches = find_mismatches(planned, executed_types(layers))
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
        for name, wanted, executed in mismatches:
            console.print(f"{name}: planned {wanted}, executed {executed}")
        if not mismatches:
            console.print("Every layer runs in the precision of the plan.")


COMMANDS = (build, inspect)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+(x\d+){3}", text):
        raise click.BadParameter(f"'{text}' is not a shape such as 1x3x640x640.")
    return tuple(int(size) for size in text.split("x"))


def _count(types: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(types).items()) or "none"
