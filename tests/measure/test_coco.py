# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses
import json

import numpy as np
import pytest

from ultra_mq.core.errors import EvaluationError
from ultra_mq.measure.agreement import score_agreement
from ultra_mq.measure.coco import score_coco
from ultra_mq.measure.predictions import Detections


def detections(rows, images=("a.jpg", "b.jpg")):
    """Rows of image, class, x, y, w, h, score."""
    return Detections(
        file_names=tuple(row[0] for row in rows),
        classes=np.array([row[1] for row in rows], dtype=np.int64),
        boxes=np.array([row[2:6] for row in rows], dtype=float).reshape(-1, 4),
        scores=np.array([row[6] for row in rows], dtype=float),
        images=images,
    )


FLOAT = [
    ("a.jpg", 0, 10, 10, 40, 40, 0.9),
    ("a.jpg", 1, 60, 60, 30, 30, 0.6),
    ("b.jpg", 0, 20, 20, 50, 50, 0.8),
    ("b.jpg", 1, 5, 5, 20, 20, 0.1),
]


def test_a_model_agrees_with_itself():
    assert score_agreement(detections(FLOAT), detections(FLOAT)) == pytest.approx(1.0)


def test_a_missing_box_costs_its_recall():
    # Class 0 has two objects in the reference and one is found: AP is 51 of COCO's 101 recall points. Class 1 is whole.
    assert score_agreement(detections(FLOAT[:2]), detections(FLOAT)) == pytest.approx((51 / 101 + 1) / 2, abs=1e-3)


def test_a_shifted_box_costs_the_strict_thresholds():
    # IoU of two 40-pixel boxes shifted by 10 is 0.6: found at thresholds 0.50, 0.55 and 0.60, so in 3 of 10.
    rows = [("a.jpg", 0, 10, 10, 40, 40, 0.9)]
    shifted = [("a.jpg", 0, 20, 10, 40, 40, 0.9)]
    assert score_agreement(detections(shifted), detections(rows)) == pytest.approx(0.3, abs=0.01)


def test_faint_boxes_of_the_reference_are_no_objects():
    assert score_agreement(detections(FLOAT[:3]), detections(FLOAT)) == pytest.approx(1.0)


def test_the_wrong_class_is_no_agreement():
    rows = [("a.jpg", 0, 10, 10, 40, 40, 0.9)]
    assert score_agreement(detections([("a.jpg", 1, 10, 10, 40, 40, 0.9)]), detections(rows)) == 0


def test_nothing_found_on_both_sides():
    assert score_agreement(detections([]), detections([])) == 1
    assert score_agreement(detections(FLOAT), detections([])) == 0
    assert score_agreement(detections([]), detections(FLOAT)) == 0


def test_other_images_are_refused():
    with pytest.raises(EvaluationError, match="same images"):
        score_agreement(detections(FLOAT), dataclasses.replace(detections(FLOAT), images=("a.jpg",)))


@pytest.fixture
def annotations(tmp_path):
    """Ids that differ from class indices, as in COCO, and a folder in front of the file names."""
    document = {
        "images": [{"id": 7, "file_name": "val/a.jpg"}, {"id": 9, "file_name": "val/b.jpg"}],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [60, 60, 30, 30], "area": 900, "iscrowd": 0},
            {"id": 3, "image_id": 9, "category_id": 90, "bbox": [20, 20, 50, 50], "area": 2500, "iscrowd": 0},
        ],
    }
    path = tmp_path / "instances_val.json"
    path.write_text(json.dumps(document))
    return path


def test_coco_table_maps_classes_by_name_and_images_by_file(annotations):
    table = score_coco(detections(FLOAT), annotations, {0: "cat", 1: "dog"})
    assert table.ap == pytest.approx(1.0)
    assert table.ap_small == pytest.approx(1.0)
    assert table.ap_medium == pytest.approx(1.0)
    assert table.ap_large == -1
    assert score_coco(detections(FLOAT), annotations, {0: "dog", 1: "cat"}).ap == 0
