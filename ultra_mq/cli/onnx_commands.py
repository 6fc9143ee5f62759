# SPDX-License-Identifier: AGPL-3.0-or-later
"""Commands on ONNX files: ptq, autocast, audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from ultra_mq.cli.options import FILE, OVERRIDES_HELP, command_options
from ultra_mq.core import console


@click.command(epilog=OVERRIDES_HELP)
@click.argument("model")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--mode", type=click.Choice(["int8", "fp8"]), default="int8", show_default=True)
@click.option("--method", type=click.Choice(["max", "entropy"]), default="max", show_default=True)
@click.option("--preset", type=click.Choice(["nohead", "everything", "extreme"]), default="nohead", show_default=True)
@click.option("--exclude", multiple=True, metavar="REGEX", help="Nodes to leave in float; repeatable.")
@click.option("--nodes", multiple=True, metavar="REGEX", help="The only nodes to quantize; repeatable.")
@click.option("--ops", multiple=True, metavar="TYPE", help="The only operator types to quantize; repeatable.")
@click.option("--exclude-ops", multiple=True, metavar="TYPE", help="Operator types to leave in float; repeatable.")
@click.option("--per-node", is_flag=True, help="Calibrate node by node: less memory, more time.")
@click.option("--provider", "providers", multiple=True, default=("cpu",), help="Execution provider of the calibration.")
@click.option("--images", default=32, show_default=True, help="Calibration images of the train split.")
@click.option("--calibration", type=FILE, help="Calibration tensor (.npy) in place of images.")
@click.option("--output", "-o", type=FILE, help="File to write; its name says the settings by default.")
@command_options
def ptq(
    model: str, overrides: tuple[str, ...], images: int, calibration: Path | None, output: Path | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Quantize MODEL (.pt or FP32 .onnx) with ModelOpt's ONNX path: the baseline, and the way without a checkpoint."""
    from ultra_mq.graph import PtqSettings, quantized_layers
    from ultra_mq.jobs import ptq_file, take_task
    from ultra_mq.session import make_recipe

    settings = PtqSettings(**options)
    task, rest = take_task(overrides)
    recipe = make_recipe({"model": model, "calibration": {"images": images}}, rest)
    graph = ptq_file(recipe, settings, calibration, output, task)
    import onnx

    layers = sorted(quantized_layers(onnx.load(str(graph.path))))
    if as_json:
        click.echo(
            json.dumps({"onnx": str(graph.path), "quantized": layers, "faults": [f.message for f in graph.faults]})
        )
        return
    console.print(f"{graph.path}: {graph.size_bytes / 1e6:.1f} MB, {len(layers)} layers quantized.", soft_wrap=True)
    for fault in graph.faults[:5]:
        console.print(f"[yellow]Note:[/] {fault.message}.", soft_wrap=True)


@click.command()
@click.argument("onnx_file", metavar="MODEL.onnx", type=FILE)
@click.option("--bf16", is_flag=True, help="BF16 in place of FP16.")
@click.option("--exclude", multiple=True, metavar="REGEX", help="Nodes to leave in FP32 beside box decode; repeatable.")
@click.option("--image", type=FILE, help="A real image; without one AutoCast makes up noise and leaves more in FP32.")
@click.option("--output", "-o", type=FILE, help="File to write; <model>-fp16.onnx by default.")
@command_options
def autocast(
    onnx_file: Path, bf16: bool, exclude: tuple[str, ...], image: Path | None, output: Path | None, as_json: bool
) -> None:
    """Convert an FP32 or Q/DQ ONNX file to FP16 or BF16, and list the nodes that stay in FP32."""
    import onnx

    from ultra_mq.graph import convert_to_fp16, hot_spots
    from ultra_mq.jobs import image_for

    precision: Literal["fp16", "bf16"] = "bf16" if bf16 else "fp16"
    pixels = image_for(onnx_file, image)
    path = output or onnx_file.with_name(f"{onnx_file.stem}-{precision}.onnx")
    graph = convert_to_fp16(onnx_file, path, pixels, precision=precision, exclude=exclude)
    spots = hot_spots(onnx.load(str(path)))
    if as_json:
        click.echo(json.dumps({"onnx": str(path), "fp32_nodes": spots}))
        return
    console.print(f"{path}: {graph.size_bytes / 1e6:.1f} MB, {len(spots)} nodes in FP32:", soft_wrap=True)
    console.print(", ".join(spots) or "none", soft_wrap=True)


@click.command()
@click.argument("onnx_file", metavar="MODEL.onnx", type=FILE)
@click.option("--plan", "plan_file", type=FILE, help="Plan that the graph should carry out.")
@click.option("--engine", type=FILE, help="Engine built from the graph, for what each finding costs.")
@command_options
def audit(onnx_file: Path, plan_file: Path | None, engine: Path | None, as_json: bool) -> None:
    """Show what keeps a Q/DQ graph from running in INT8 throughout: float joins, islands, unequal scales."""
    from dataclasses import asdict

    from rich.table import Table

    from ultra_mq.core import KernelTime
    from ultra_mq.graph import audit_graph, load_graph
    from ultra_mq.plan import load_plan
    from ultra_mq.runtimes import load_engine

    audited = audit_graph(
        load_graph(onnx_file),
        load_plan(plan_file).quantized if plan_file else None,
        [KernelTime(layer.nodes, layer.ms or 0.0) for layer in load_engine(engine).layers] if engine else (),
    )
    if as_json:
        click.echo(json.dumps(asdict(audited), indent=2))
        return
    counts = "; ".join(f"{kind} {done} of {total}" for kind, (done, total) in audited.counts.items())
    console.print(f"Quantized: {counts}.", soft_wrap=True)
    table = Table(title=f"{len(audited.findings)} findings in {onnx_file.name}", title_justify="left")
    for column in ("us", "where", "rule", "what"):
        table.add_column(column, justify="right" if column == "us" else "left", overflow="fold")
    for finding in audited.findings:
        table.add_row(
            f"{1e3 * finding.ms:.1f}" if finding.ms is not None else "-", finding.where, finding.rule, finding.message
        )
    if audited.findings:
        console.print(table)


COMMANDS = (ptq, autocast, audit)
