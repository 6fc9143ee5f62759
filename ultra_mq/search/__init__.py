# SPDX-License-Identifier: AGPL-3.0-or-later
"""Budgets of accuracy and latency to a plan that was proven.

In: a ``Session`` and a variant's budgets. Out: a ``Search`` with every plan that was measured, or the plans of a front.
"""

from ultra_mq.search.budgets import find_plan, search
from ultra_mq.search.calibration_methods import compare_calibrations
from ultra_mq.search.front import front_plans, front_recipe
from ultra_mq.search.outcome import Search
from ultra_mq.search.probing import learn_latency

__all__ = ["Search", "compare_calibrations", "find_plan", "front_plans", "front_recipe", "learn_latency", "search"]
