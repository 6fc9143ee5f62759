# SPDX-License-Identifier: AGPL-3.0-or-later
"""Scores, costs and a budget to a ``PrecisionPlan``.

In: a ``PreparedModel`` and its ``Calibration``. Out: the ``Sensitivity`` of every layer, what it costs, and the plan of
least loss within a budget.
"""

from ultra_mq.plan.cost import BITS_MODELS, CostModel, layer_sizes
from ultra_mq.plan.gradient import measure_sensitivity
from ultra_mq.plan.latency import LatencyModel
from ultra_mq.plan.latency_fit import BUILD_DEVIATION, Probe, deviations_ms, fit_latency, learn_from
from ultra_mq.plan.perturb import measure_perturbation
from ultra_mq.plan.precision_plan import (
    KEPT,
    LayerPlan,
    PrecisionPlan,
    check_bits,
    load_plan,
    make_plan,
    save_plan,
    uniform_plan,
)
from ultra_mq.plan.prices import Prices, weight_prices
from ultra_mq.plan.revision import check_plan, repair_plan, settle_plan
from ultra_mq.plan.scores import LossName, ScoreMethod, Sensitivity
from ultra_mq.plan.solve import Choices, Measure, make_choices, solve_choice, solve_plan
from ultra_mq.plan.structure import probe_choices, stage_of, structural_choices

__all__ = [
    "BITS_MODELS",
    "BUILD_DEVIATION",
    "KEPT",
    "Choices",
    "CostModel",
    "LatencyModel",
    "LayerPlan",
    "LossName",
    "Measure",
    "PrecisionPlan",
    "Prices",
    "Probe",
    "ScoreMethod",
    "Sensitivity",
    "check_bits",
    "check_plan",
    "deviations_ms",
    "fit_latency",
    "layer_sizes",
    "learn_from",
    "load_plan",
    "make_choices",
    "make_plan",
    "measure_perturbation",
    "measure_sensitivity",
    "probe_choices",
    "repair_plan",
    "save_plan",
    "settle_plan",
    "solve_choice",
    "solve_plan",
    "stage_of",
    "structural_choices",
    "uniform_plan",
    "weight_prices",
]
