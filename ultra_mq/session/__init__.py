# SPDX-License-Identifier: AGPL-3.0-or-later
"""One recipe on its way: what is loaded once, and the artefacts of each plan.

In: a ``Recipe``. Out: a ``Session`` with its stages, a ``Target`` to run on, and the ``Artefacts`` of a plan.
"""

from ultra_mq.session.artefacts import ENGINE, Artefacts, float_artefacts, ptq_artefacts
from ultra_mq.session.checks import check_fit, complete_recipe, small_data
from ultra_mq.session.forecast import Forecast, expect_stages
from ultra_mq.session.json_schema import schema_file, schema_line
from ultra_mq.session.measuring import evaluate_file, time_artefacts
from ultra_mq.session.recipe import (
    AUTO_DATA,
    DEFAULT_BITS,
    DEFAULT_IMGSZ,
    Recipe,
    apply_override,
    load_recipe,
    make_recipe,
    save_recipe,
)
from ultra_mq.session.recipe_sections import Criteria, EngineSettings, EvaluationSettings, Metric, choose_metric
from ultra_mq.session.session import Session, open_session, with_recipe
from ultra_mq.session.stages import (
    calibrate_layers,
    counted_bits,
    open_choices,
    plan_variant,
    prices_of,
    score_layers,
    signed,
    solve_bits,
)
from ultra_mq.session.target import Target, host_target
from ultra_mq.session.variant import Variant

__all__ = [
    "AUTO_DATA",
    "DEFAULT_BITS",
    "DEFAULT_IMGSZ",
    "ENGINE",
    "Artefacts",
    "Criteria",
    "EngineSettings",
    "EvaluationSettings",
    "Forecast",
    "Metric",
    "Recipe",
    "Session",
    "Target",
    "Variant",
    "apply_override",
    "calibrate_layers",
    "check_fit",
    "choose_metric",
    "complete_recipe",
    "counted_bits",
    "evaluate_file",
    "expect_stages",
    "float_artefacts",
    "host_target",
    "load_recipe",
    "make_recipe",
    "open_choices",
    "open_session",
    "plan_variant",
    "prices_of",
    "ptq_artefacts",
    "save_recipe",
    "schema_file",
    "schema_line",
    "score_layers",
    "signed",
    "small_data",
    "solve_bits",
    "time_artefacts",
    "with_recipe",
]
