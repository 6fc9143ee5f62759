# SPDX-License-Identifier: AGPL-3.0-or-later
"""Figures to what a person reads and a gate checks.

In: a ``Report``. Out: report.md, report.html, results.json, plots, a recommendation, verdicts.
"""

from ultra_mq.report.gallery import Picture, draw_gallery, picture_legend
from ultra_mq.report.gate import check_report, gate_summary
from ultra_mq.report.layer_table import LAYER_CONSOLE_COLUMNS, make_layer_table, table_cells, write_layer_table
from ultra_mq.report.page import ClassTable, Page, write_page
from ultra_mq.report.recommendation import recommend, variant_of_interest
from ultra_mq.report.results import ACCURACY, ENGINE_FOLDER, Report, VariantResult, load_variants
from ultra_mq.report.tables import console_table, points, points_text, share
from ultra_mq.report.trackers import log_report
from ultra_mq.report.write import write_classes, write_report

__all__ = [
    "ACCURACY",
    "ENGINE_FOLDER",
    "LAYER_CONSOLE_COLUMNS",
    "ClassTable",
    "Page",
    "Picture",
    "Report",
    "VariantResult",
    "check_report",
    "console_table",
    "draw_gallery",
    "gate_summary",
    "load_variants",
    "log_report",
    "make_layer_table",
    "picture_legend",
    "points",
    "points_text",
    "recommend",
    "share",
    "table_cells",
    "variant_of_interest",
    "write_classes",
    "write_layer_table",
    "write_page",
    "write_report",
]
