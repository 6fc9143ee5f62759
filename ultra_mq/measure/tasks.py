# SPDX-License-Identifier: AGPL-3.0-or-later
"""What accuracy is, task by task: the figures of Ultralytics' validators, and what agreement compares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskMetrics:
    """The figures of one task.

    Attributes:
        main: Ultralytics' name of the figure that budgets count.
        second: Ultralytics' name of a laxer figure beside it.
        title: Name of ``main`` in tables.
        second_title: Name of ``second`` in tables.
        agreement: What agreement with the float model means, for the reader.
        correct: Key of the matches behind ``main`` in the statistics of Ultralytics' validator.
    """

    main: str
    second: str
    title: str
    second_title: str
    agreement: str
    correct: str = ""


_OF_OBJECTS = "AP50-95 with the float model's {} (confidence 0.25 and more) as ground truth"

TASK_METRICS = {
    "detect": TaskMetrics(
        "metrics/mAP50-95(B)", "metrics/mAP50(B)", "mAP50-95", "mAP50", _OF_OBJECTS.format("detections"), "tp"
    ),
    "segment": TaskMetrics(
        "metrics/mAP50-95(M)",
        "metrics/mAP50-95(B)",
        "mask mAP50-95",
        "box mAP50-95",
        _OF_OBJECTS.format("masks") + ", by the IoU of masks",
        "tp_m",
    ),
    "pose": TaskMetrics(
        "metrics/mAP50-95(P)",
        "metrics/mAP50-95(B)",
        "pose mAP50-95",
        "box mAP50-95",
        _OF_OBJECTS.format("keypoints") + ", by object keypoint similarity",
        "tp_p",
    ),
    "obb": TaskMetrics(
        "metrics/mAP50-95(B)",
        "metrics/mAP50(B)",
        "rotated mAP50-95",
        "rotated mAP50",
        _OF_OBJECTS.format("rotated boxes") + ", by their probabilistic IoU",
        "tp",
    ),
    "classify": TaskMetrics(
        "metrics/accuracy_top1",
        "metrics/accuracy_top5",
        "top-1",
        "top-5",
        "the share of images that get the class which the float model gives them",
    ),
}
"""By Ultralytics' names of tasks. Segmentation and pose have the mAP of boxes as second figure: a mask can be lost
while the box is not."""
