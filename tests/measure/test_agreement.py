# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every task by its own figures: those of Ultralytics, and agreement that sees what the task is about."""

import dataclasses
import json

import numpy as np
import pytest
from shapes import make_dataset
from ultralytics import YOLO

from ultra_mq.measure.accuracy import compare, load_accuracy, save_accuracy
from ultra_mq.measure.agreement import log_probability_shift, score_agreement
from ultra_mq.measure.bootstrap import bootstrap_predictions
from ultra_mq.measure.coco import score_coco
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.measure.predictions import Classifications
from ultra_mq.measure.tasks import TASK_METRICS
from ultra_mq.prepare.datasets import load_data
from ultra_mq.prepare.model import load_model

SUFFIXES = {"segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
OBJECTS = ("segment", "pose", "obb")


def bootstrap_metric(found, reference):
    return bootstrap_predictions(found, reference, "map")[0]


def bootstrap_agreement(found, reference):
    return bootstrap_predictions(found, reference, "agreement")[0]


@pytest.fixture(scope="module")
def found(tmp_path_factory, weights):
    """Model, data and accuracy of a task's demo checkpoint on 12 pictures; made once."""
    made = {}

    def get(task):
        if task not in made:
            path = weights.with_name(f"shapes-yolo11n{SUFFIXES[task]}.pt")
            source = make_dataset(tmp_path_factory.mktemp(task), 10, 12, task)
            model = load_model(path)
            imgsz = 96 if task == "classify" else 160
            data = load_data(source, imgsz, model.stride, task=task, classes=model.names)
            made[task] = (model, data, evaluate(model.module, data, label=task))
        return made[task]

    return get


@pytest.mark.parametrize("task", SUFFIXES)
def test_figures_are_those_of_ultralytics(found, task):
    model, data, accuracy = found(task)
    theirs = YOLO(model.source).val(
        data=str(data.source), imgsz=data.imgsz, batch=4, rect=False, plots=False, workers=0, verbose=False,
        device="cpu", project=str(data.calibration.images[0].parent / "runs"),
    ).results_dict  # fmt: skip
    metrics = TASK_METRICS[task]
    assert accuracy.main == pytest.approx(theirs[metrics.main], abs=1e-6)
    assert accuracy.second == pytest.approx(theirs[metrics.second], abs=1e-6)
    assert accuracy.main > 0.3
    assert accuracy.images == 12


@pytest.mark.parametrize("task", SUFFIXES)
def test_a_model_agrees_with_itself_and_survives_the_disk(found, task, tmp_path):
    _, _, accuracy = found(task)
    save_accuracy(accuracy, tmp_path)
    loaded = load_accuracy(tmp_path)
    assert dataclasses.replace(loaded, predictions=None) == dataclasses.replace(accuracy, predictions=None)
    assert compare(accuracy, loaded.predictions).agreement == pytest.approx(1.0)
    assert bootstrap_agreement(accuracy.predictions, loaded.predictions).points == pytest.approx(0.0)
    drop = bootstrap_metric(accuracy.predictions, loaded.predictions)
    assert drop.low <= drop.points == 0.0 <= drop.high


def changed(task, predictions):
    """The same boxes, and what the task is about somewhere else."""
    if task == "segment":
        return dataclasses.replace(predictions, masks=predictions.masks[:1] * len(predictions.masks))
    if task == "pose":
        return dataclasses.replace(predictions, keypoints=predictions.keypoints + np.array([40.0, 40.0, 0.0]))
    return dataclasses.replace(predictions, angles=predictions.angles + np.pi / 5)


def long(predictions):
    """Boxes three times as wide as high: a square looks the same however it is turned."""
    boxes = predictions.boxes.copy()
    boxes[:, 2] = 3 * boxes[:, 3]
    return dataclasses.replace(predictions, boxes=boxes)


@pytest.mark.parametrize("task", OBJECTS)
def test_agreement_sees_more_than_boxes(found, task):
    _, _, accuracy = found(task)
    reference = long(accuracy.predictions) if task == "obb" else accuracy.predictions
    other = changed(task, reference)
    assert np.array_equal(other.boxes, reference.boxes)
    assert score_agreement(other, reference) < 0.8
    drop = bootstrap_agreement(other, reference)
    assert drop.low > 15


def test_rotated_boxes_are_compared_as_such(found):
    """A box turned by half a turn is the same box; a long one by a quarter is not."""
    _, _, accuracy = found("obb")
    turned = dataclasses.replace(accuracy.predictions, angles=accuracy.predictions.angles + np.pi)
    assert score_agreement(turned, accuracy.predictions) == pytest.approx(1.0, abs=1e-3)


def test_tasks_do_not_compare(found):
    from ultra_mq.core.errors import EvaluationError

    one, other = found("segment")[2].predictions, found("obb")[2].predictions
    with pytest.raises(EvaluationError, match="nothing to agree on"):
        score_agreement(one, dataclasses.replace(other, images=one.images))


def classifier(probabilities, labels=(0, 1, 1, 0)):
    images = tuple(f"{index}.jpg" for index in range(len(labels)))
    return Classifications(images, np.log(np.array(probabilities, np.float32)), np.array(labels))


FLOAT = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]]


def test_classifiers_agree_by_their_class_and_move_by_their_confidence():
    reference = classifier(FLOAT)
    quantized = classifier([[0.6, 0.4], [0.2, 0.8], [0.55, 0.45], [0.7, 0.3]])
    assert score_agreement(quantized, reference) == 0.75
    moved = (np.log(0.9 / 0.6) + 0 + np.log(0.6 / 0.45) + 0) / 4
    assert log_probability_shift(quantized, reference) == pytest.approx(moved, rel=1e-5)
    drop = bootstrap_metric(quantized, reference)
    assert drop.points == pytest.approx(25.0)
    assert drop.low <= 25 <= drop.high
    assert bootstrap_agreement(quantized, reference).points == pytest.approx(25.0)


def coco_file(data, task, path):
    """The evaluation labels as an annotation file."""
    annotations, images = [], []
    for number, (file, label) in enumerate(zip(data.evaluation.images, data.evaluation.dataset.labels, strict=True)):
        images.append({"id": number, "file_name": file.name, "height": 320, "width": 320})
        for index, (cls, box) in enumerate(zip(label["cls"].ravel(), label["bboxes"] * 320, strict=True)):
            x, y, width, height = (float(value) for value in box)
            entry = {
                "id": len(annotations) + 1, "image_id": number, "category_id": int(cls) + 10, "iscrowd": 0,
                "bbox": [x - width / 2, y - height / 2, width, height], "area": width * height,
            }  # fmt: skip
            if task == "segment":
                entry["segmentation"] = [(label["segments"][index] * 320).ravel().tolist()]
            else:
                points = label["keypoints"][index].copy()
                points[:, :2] *= 320
                entry |= {"keypoints": points.ravel().tolist(), "num_keypoints": len(points)}
            annotations.append(entry)
    categories = [{"id": index + 10, "name": name} for index, name in data.names.items()]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_coco_table_of_masks(found, tmp_path):
    model, data, _ = found("segment")
    data = dataclasses.replace(data, annotations=coco_file(data, "segment", tmp_path / "instances_val.json"))
    accuracy = evaluate(model.module, data, label="masks")
    assert accuracy.predictions.mask_sizes.tolist()[0] == [40, 40]
    # Ultralytics' AP at the validator's resolution and pycocotools' in pixels of the image are near each other.
    assert accuracy.coco.ap == pytest.approx(accuracy.main, abs=0.12)
    assert accuracy.coco.ap50 > 0.6


def test_coco_table_of_keypoints(found, tmp_path):
    _, data, accuracy = found("pose")
    path = coco_file(data, "pose", tmp_path / "person_keypoints_val.json")
    predictions = dataclasses.replace(
        accuracy.predictions, keypoints=np.repeat(accuracy.predictions.keypoints, 4, axis=1)[:, :17]
    )
    document = json.loads(path.read_text())
    for entry in document["annotations"]:
        points = np.array(entry["keypoints"]).reshape(-1, 3).repeat(4, axis=0)[:17]
        entry |= {"keypoints": points.ravel().tolist(), "num_keypoints": 17}
    path.write_text(json.dumps(document))
    table = score_coco(predictions, path, data.names)
    assert table.ap > 0.3
    assert table.ap_small == -1
