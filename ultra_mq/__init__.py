# SPDX-License-Identifier: AGPL-3.0-or-later
"""ultra-mq: a precision for every layer of a YOLO model, under a budget, proven on your data."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultra_mq.core import UltraMQError
    from ultra_mq.jobs import autoquant, callback, export, load, quantize, recover, run_recipe
    from ultra_mq.plan import PrecisionPlan, load_plan, save_plan
    from ultra_mq.quantization import QAT
    from ultra_mq.report import Report
    from ultra_mq.session import Recipe, load_recipe

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
    "export",
    "load",
    "load_plan",
    "load_recipe",
    "quantize",
    "recover",
    "run_recipe",
    "save_plan",
]

_HOMES = {
    "QAT": "quantization",
    "PrecisionPlan": "plan",
    "Recipe": "session",
    "Report": "report",
    "UltraMQError": "core",
    "autoquant": "jobs",
    "callback": "jobs",
    "export": "jobs",
    "load": "jobs",
    "load_plan": "plan",
    "load_recipe": "session",
    "quantize": "jobs",
    "recover": "jobs",
    "read_record": "quantization",  # named by checkpoints, see quantization/record.py
    "run_recipe": "jobs",
    "save_plan": "plan",
}


def __getattr__(name: str) -> Any:
    # torch and Ultralytics take seconds to import; `import ultra_mq` and `--help` must not.
    if name not in _HOMES:
        raise AttributeError(f"module 'ultra_mq' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ultra_mq.{_HOMES[name]}"), name)
