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
