# SPDX-License-Identifier: AGPL-3.0-or-later
"""An artefact to figures that can be trusted.

In: a module or an open ``Backend``, and data. Out: ``Accuracy`` with its detections, intervals, and a ``Bench`` of
latencies side by side.
"""

from ultra_mq.measure.accuracy import Accuracy, compare, load_accuracy, points_lost, save_accuracy
from ultra_mq.measure.agreement import REFERENCE_CONFIDENCE
from ultra_mq.measure.bench import Bench, Latency, time_in_turns
from ultra_mq.measure.bootstrap import (
    DRAWS,
    FEW_HOLDERS,
    USUAL_CONFIDENCE,
    ClassLoss,
    Drop,
    Verdict,
    bootstrap_classes,
    bootstrap_loss,
    describe_loss,
    find_broken_classes,
)
from ultra_mq.measure.differences import ImageDifferences, find_differences, sample_evenly
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.measure.layer_parity import Parting, compare_layers
from ultra_mq.measure.parity import Parity, check_parity
from ultra_mq.measure.predictions import Classifications, Detections, Predictions
from ultra_mq.measure.tasks import TASK_METRICS, TaskMetrics

__all__ = [
    "DRAWS",
    "FEW_HOLDERS",
    "REFERENCE_CONFIDENCE",
    "TASK_METRICS",
    "USUAL_CONFIDENCE",
    "Accuracy",
    "Bench",
    "ClassLoss",
    "Classifications",
    "Detections",
    "Drop",
    "ImageDifferences",
    "Latency",
    "Parity",
    "Parting",
    "Predictions",
    "TaskMetrics",
    "Verdict",
    "bootstrap_classes",
    "bootstrap_loss",
    "check_parity",
    "compare",
    "compare_layers",
    "describe_loss",
    "evaluate",
    "find_broken_classes",
    "find_differences",
    "load_accuracy",
    "points_lost",
    "sample_evenly",
    "save_accuracy",
    "time_in_turns",
]
