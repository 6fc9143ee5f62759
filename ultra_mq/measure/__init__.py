# SPDX-License-Identifier: AGPL-3.0-or-later
"""An artefact to figures that can be trusted.

In: a module or an open ``Backend``, and data. Out: ``Accuracy`` with its detections, intervals, and a ``Bench`` of
latencies side by side.
"""

from ultra_mq.measure.accuracy import Accuracy, compare, load_accuracy, points_lost, save_accuracy
from ultra_mq.measure.bench import Bench, Latency, time_in_turns
from ultra_mq.measure.bootstrap import DRAWS, USUAL_CONFIDENCE, Drop, Verdict, bootstrap_loss, describe_loss
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.measure.parity import Parity, Parting, check_parity, compare_layers
from ultra_mq.measure.tasks import TASK_METRICS, TaskMetrics

__all__ = [
    "DRAWS",
    "TASK_METRICS",
    "USUAL_CONFIDENCE",
    "Accuracy",
    "Bench",
    "Drop",
    "Latency",
    "Parity",
    "Parting",
    "TaskMetrics",
    "Verdict",
    "bootstrap_loss",
    "check_parity",
    "compare",
    "compare_layers",
    "describe_loss",
    "evaluate",
    "load_accuracy",
    "points_lost",
    "save_accuracy",
    "time_in_turns",
]
