# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every command of the command line has in common."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ultra_mq.console import console
from ultra_mq.errors import UltraMQError
from ultra_mq.files import UNWRITABLE

FILE = click.Path(path_type=Path)

trt_python = click.option("--trt-python", metavar="PYTHON", help="Interpreter that has TensorRT.")

placement = click.option(
    "--placement",
    type=click.Choice(["runtime", "torch", "onnx"]),
    default="runtime",
    show_default=True,
    help="Where Q/DQ stand: layers and joins, layers alone, or by ModelOpt's ONNX path.",
)

formats = click.option(
    "--format",
    "formats",
    type=click.Choice(["int8", "fp8"]),
    multiple=True,
    default=("int8",),
    show_default=True,
    help="What to choose from beside FP16; repeatable.",
)

cpu_runtime = click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "openvino"]),
    default="onnxruntime",
    show_default=True,
    help="What runs ONNX files.",
)

cost = click.option(
    "--cost",
    "cost_model",
    type=click.Choice(["weights", "macs", "latency"]),
    default="weights",
    show_default=True,
    help="What to keep low: bits averaged over weights or MACs, or the latency measured on --runtime.",
)

target = click.option(
    "--runtime",
    type=click.Choice(["auto", "tensorrt", "onnxruntime", "openvino"]),
    default="auto",
    show_default=True,
    help="Where budgets of accuracy and latency are proven.",
)


def budgets(function: Callable[..., None]) -> Callable[..., None]:
    """Options that say what a user can afford; the function gets those that were given as ``budgets``."""
    options = (
        click.option("--bits", type=float, help="Effective bits a weight, 8 (all INT8) to 16; 9 where no budget is."),
        click.option("--max-drop", type=click.FloatRange(min=0), help="Points of the metric that may be lost, as 0.5."),
        click.option("--metric", type=click.Choice(["map", "agreement"]), help="What --max-drop counts; mAP50-95."),
        click.option("--max-latency", "max_latency_ms", type=float, metavar="MS", help="Median latency, at most."),
        click.option("--min-speedup", type=float, help="Speed relative to the float model, at least."),
    )

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        names = ("bits", "max_drop", "metric", "max_latency_ms", "min_speedup")
        given = {name: value for name in names if (value := kwargs.pop(name)) is not None}
        function(*args, budgets=given, **kwargs)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


OVERRIDES_HELP = "After the options: key=value in Ultralytics' style, such as data=coco8.yaml imgsz=640 device=0."


def command_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of every command, and the one place where errors become messages and exit codes."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def wrapped(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            console.print("Interrupted. Finished stages are in the cache; the same command goes on from there.")
            sys.exit(130)
        except click.ClickException:
            raise
        except Exception as error:
            expected = isinstance(error, UltraMQError) or getattr(error, "errno", None) in UNWRITABLE
            if debug:
                traceback.print_exc()
            console.print("[red]Error:[/]" if expected else f"[red]Unexpected {type(error).__name__}:[/]", end=" ")
            console.print(str(error), markup=False, soft_wrap=True)
            if not expected:
                console.print("This is a fault of ultra-mq; run again with --debug and report it.")
            sys.exit(2 if expected else 1)

    return wrapped
