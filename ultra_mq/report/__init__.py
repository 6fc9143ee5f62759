# SPDX-License-Identifier: AGPL-3.0-or-later
"""Figures to what a person reads and a gate checks.

In: a ``Report``. Out: report.md, report.html, results.json, plots, a recommendation, verdicts.
"""

from ultra_mq.report.gate import check_report
from ultra_mq.report.layer_table import LAYER_CONSOLE_COLUMNS, make_layer_table, table_cells, write_layer_table
from ultra_mq.report.recommendation import recommend
from ultra_mq.report.results import ACCURACY, ENGINE_FOLDER, Report, VariantResult
from ultra_mq.report.tables import console_table, points
from ultra_mq.report.write import write_report

__all__ = [
    "ACCURACY",
    "ENGINE_FOLDER",
    "LAYER_CONSOLE_COLUMNS",
    "Report",
    "VariantResult",
    "check_report",
    "console_table",
    "make_layer_table",
    "points",
    "recommend",
    "table_cells",
    "write_layer_table",
    "write_report",
]
