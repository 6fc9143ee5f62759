# SPDX-License-Identifier: AGPL-3.0-or-later
"""ultra-mq: a precision for every layer of a YOLO model, under a budget, proven on your data."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultra_mq.api import autoquant, callback, load, quantize
    from ultra_mq.errors import UltraMQError
    from ultra_mq.pipeline import run_recipe
    from ultra_mq.plan import PrecisionPlan, load_plan, save_plan
    from ultra_mq.recipe import Recipe, load_recipe
    from ultra_mq.results import Report
    from ultra_mq.training import QAT

__version__ = version("ultra-mq")

__all__ = [
    "QAT",
    "PrecisionPlan",
    "Recipe",
    "Report",
    "UltraMQError",
    "__version__",
    "autoquant",
    "callback",
    "load",
    "load_plan",
    "load_recipe",
    "quantize",
    "run_recipe",
    "save_plan",
]

_HOMES = {
    "QAT": "training",
    "PrecisionPlan": "plan",
    "Recipe": "recipe",
    "Report": "results",
    "UltraMQError": "errors",
    "autoquant": "api",
    "callback": "api",
    "load": "api",
    "load_plan": "plan",
    "load_recipe": "recipe",
    "quantize": "api",
    "run_recipe": "pipeline",
    "save_plan": "plan",
}


def __getattr__(name: str) -> Any:
    # torch and Ultralytics take seconds to import; `import ultra_mq` and `--help` must not.
    if name not in _HOMES:
        raise AttributeError(f"module 'ultra_mq' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ultra_mq.{_HOMES[name]}"), name)
