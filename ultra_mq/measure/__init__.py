# SPDX-License-Identifier: AGPL-3.0-or-later
"""An artefact to figures that can be trusted.

In: a module or an open ``Backend``, and data. Out: ``Accuracy`` with its detections, intervals, and a ``Bench`` of
latencies side by side.
"""

from ultra_mq.measure.accuracy import Accuracy, Parity, check_parity, compare, load_accuracy, points_lost, save_accuracy
from ultra_mq.measure.bench import Bench, Latency, time_in_turns
from ultra_mq.measure.bootstrap import bootstrap_agreement, bootstrap_map
from ultra_mq.measure.evaluation import evaluate

__all__ = [
    "Accuracy",
    "Bench",
    "Latency",
    "Parity",
    "bootstrap_agreement",
    "bootstrap_map",
    "check_parity",
    "compare",
    "evaluate",
    "load_accuracy",
    "points_lost",
    "save_accuracy",
    "time_in_turns",
]
