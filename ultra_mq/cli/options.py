# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every command of the command line has in common."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel

from ultra_mq.core import UNWRITABLE, FormatName, UltraMQError, console, shown_log
from ultra_mq.plan import CostModel
from ultra_mq.prepare import Placement
from ultra_mq.runtimes import BuildOptions, CpuRuntime
from ultra_mq.session import Metric, Recipe, Variant

FILE = click.Path(path_type=Path)

NOT_MET, REFUSED, CRASHED, INTERRUPTED = 1, 2, 70, 130
"""Exit codes: a gate's limit or doctor's needs are not met; input that cannot be used; a fault of ultra-mq (EX_SOFTWARE
of sysexits.h); Ctrl-C."""


def field_option(model: type[BaseModel], field: str, *names: str, **attributes: Any) -> Callable[..., Any]:
    """A click option that says of a setting what its field says: one text for recipes and the command line.

    Args:
        model: Section of a recipe.
        field: Key in it; the option has its default.
        *names: Names of the option, ``--level`` and what click shall call it where that is not the field.
        **attributes: Further attributes of a click option.
    """
    info = model.model_fields[field]
    text = (info.description or "").replace("`", "")
    if "default" not in attributes and info.default is not None:
        attributes |= {"default": info.default, "show_default": not isinstance(info.default, bool)}
    return click.option(*names, help=text, **attributes)


def choice(kind: Any) -> click.Choice[str]:
    """The values of a ``Literal`` as click knows them."""
    return click.Choice([str(value) for value in get_args(kind)])


def choices_of(model: type[BaseModel], field: str) -> click.Choice[str]:
    """The values that a field of a recipe may have."""
    return choice(model.model_fields[field].annotation)


trt_python = field_option(BuildOptions, "trt_python", "--trt-python", metavar="PYTHON")
device = field_option(Recipe, "device", "--device")
placement = field_option(Recipe, "placement", "--placement", type=choice(Placement))
formats = field_option(Recipe, "formats", "--format", "formats", type=choice(FormatName), multiple=True)
cpu_runtime = click.option(
    "--runtime", type=choice(CpuRuntime), default="onnxruntime", show_default=True, help="What runs ONNX files."
)
cost = field_option(Recipe, "cost_model", "--cost", "cost_model", type=choice(CostModel))
target = field_option(Recipe, "runtime", "--runtime", type=choices_of(Recipe, "runtime"))
recover = click.option(
    "--recover", is_flag=True, help="Let quantized models learn again what the float one says (experimental)."
)
metric = field_option(Variant, "metric", "--metric", type=choice(Metric))


def budgets(function: Callable[..., None]) -> Callable[..., None]:
    """Options that say what a user can afford; the function gets those that were given as ``budgets``."""
    options = (
        field_option(Variant, "bits", "--bits", type=float),
        field_option(Variant, "max_drop", "--max-drop", type=click.FloatRange(min=0)),
        field_option(
            Variant, "max_drop_per_class", "--max-drop-per-class", type=click.FloatRange(min=0, min_open=True)
        ),
        metric,
        field_option(
            Variant, "confidence", "--confidence", type=click.FloatRange(0.5, 1, min_open=True, max_open=True)
        ),
        field_option(Variant, "max_latency_ms", "--max-latency", "max_latency_ms", type=float, metavar="MS"),
        field_option(Variant, "min_speedup", "--min-speedup", type=float),
    )

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        names = ("bits", "max_drop", "max_drop_per_class", "metric", "confidence", "max_latency_ms", "min_speedup")
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
            with shown_log():
                function(*args, **kwargs)
        except KeyboardInterrupt:
            console.print("Interrupted. Finished stages are in the cache; the same command goes on from there.")
            sys.exit(INTERRUPTED)
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
            sys.exit(REFUSED if expected else CRASHED)

    return wrapped
