# SPDX-License-Identifier: AGPL-3.0-or-later
"""Recipes carried out from weights to report, one or many.

In: a ``Recipe`` or a ``Sweep``. Out: run folders; also the functions of the Python API.
"""

from ultra_mq.jobs.api import autoquant, autoquant_recipe, callback, compare_recipe, load, quantize, recover
from ultra_mq.jobs.diff_job import class_tables, diff_files
from ultra_mq.jobs.export_api import export
from ultra_mq.jobs.exported_data import image_for, take_task
from ultra_mq.jobs.file_accuracy import evaluate_files
from ultra_mq.jobs.pipeline import make_run_folder, run_recipe
from ultra_mq.jobs.prediction import predict_file
from ultra_mq.jobs.ptq_job import ptq_file
from ultra_mq.jobs.sweep.study import run_sweep
from ultra_mq.jobs.sweep.sweep_file import load_sweep
from ultra_mq.jobs.sweep.sweep_report import best_trials, write_sweep_report

__all__ = [
    "autoquant",
    "autoquant_recipe",
    "best_trials",
    "callback",
    "class_tables",
    "compare_recipe",
    "diff_files",
    "evaluate_files",
    "export",
    "image_for",
    "load",
    "load_sweep",
    "make_run_folder",
    "predict_file",
    "ptq_file",
    "quantize",
    "recover",
    "run_recipe",
    "run_sweep",
    "take_task",
    "write_sweep_report",
]
