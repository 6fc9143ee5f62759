# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data sets of every task, and labels of another one."""

import shutil

import numpy as np
import pytest
from shapes import make_dataset

from ultra_mq.core.errors import DataError
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.prepare.data import Batches
from ultra_mq.prepare.datasets import load_data, load_images
from ultra_mq.prepare.model import load_model

SUFFIXES = {"segment": "-seg", "obb": "-obb"}


@pytest.mark.parametrize("task", SUFFIXES)
def test_boxes_prove_no_outlines_and_the_images_are_used(weights, shapes, task):
    """Ultralytics refuses such labels; the mask agreement of a COCO model on a slice with boxes needs none."""
    model = load_model(weights.with_name(f"shapes-yolo11n{SUFFIXES[task]}.pt"))
    data = load_data(shapes, 160, model.stride, task=task)
    assert any("boxes without" in remark for remark in data.remarks)
    assert not data.evaluation.labelled
    accuracy = evaluate(model.module, data, label=task)
    assert accuracy.main is None
    assert len(accuracy.predictions.scores) > 20


@pytest.mark.parametrize("task", SUFFIXES)
def test_outlines_are_labels(tmp_path, task):
    data = load_data(make_dataset(tmp_path, 3, 3, task), 160, 32, task=task)
    assert data.evaluation.labelled
    batch = next(iter(Batches(data.evaluation, [0, 1], 2)))
    if task == "segment":
        assert batch["masks"].shape == (2, 40, 40)
        assert batch["masks"].max() > 1
    else:
        assert batch["bboxes"].shape[1] == 5
    assert data.remarks == ()


def test_class_folders(tmp_path, weights):
    model = load_model(weights.with_name("shapes-yolo11n-cls.pt"))
    data = load_data(make_dataset(tmp_path, 10, 5, "classify"), 96, 1, task="classify", classes=model.names)
    assert data.names == model.names
    assert len(data.evaluation.images) == 5
    assert data.evaluation.labelled
    batches = Batches(data.calibration, [0, 3], 2)
    batch = next(iter(batches))
    assert batch["img"].shape == (2, 3, 96, 96)
    assert 0 <= batch["img"].min() < batch["img"].max() <= 1
    # The label is part of what an evaluation depends on.
    first = data.calibration.files[0]
    assert Batches(data.calibration, [0, 3], 2).fingerprint == batches.fingerprint
    assert data.calibration.label_bytes(0) == str(list(model.names.values()).index(first.split("/")[-2])).encode()


def test_folders_of_other_classes(tmp_path):
    make_dataset(tmp_path, 5, 5, "classify")
    data = load_data(tmp_path, 96, 1, task="classify", classes={0: "circle", 1: "square"})
    assert {sample[1] for sample in data.evaluation.dataset.samples} == {0, 1}


def test_classifiers_crop_squares(tmp_path):
    with pytest.raises(DataError, match=r"classifiers crop squares\. Use imgsz=160"):
        load_data(tmp_path, (96, 160), 1, task="classify")


@pytest.mark.parametrize("data", ["gone", "gone.yaml", "gone.ndjson"])
def test_data_that_are_not_there(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ultralytics.data.utils.download", lambda *_, **__: None)
    task = "classify" if data == "gone" else "detect"
    with pytest.raises(DataError, match="cannot be used"):
        load_data(data, 96, 32, task=task)


def test_rectangles(shapes):
    data = load_data(shapes, (96, 160), 32)
    batch = next(iter(Batches(data.evaluation, [0], 1)))
    assert batch["img"].shape == (1, 3, 96, 160)
    # Square pictures keep their shape between bars of grey at both sides.
    assert np.allclose(batch["img"][0, :, :, :30].numpy(), 114 / 255, atol=1e-6)


def test_a_folder_of_images_without_labels(weights, shapes, tmp_path):
    model = load_model(weights)
    shutil.copytree(shapes.parent / "images" / "val", tmp_path / "more")
    split = load_images([tmp_path / "more"], model, 160)
    assert len(split.images) == 12
    assert not split.labelled
    assert next(iter(Batches(split, [0, 1], 2)))["img"].shape == (2, 3, 160, 160)
    both = load_images([tmp_path / "more", shapes.parent / "images" / "train"], model, 160)
    assert len(both.images) > 12
    with pytest.raises(DataError, match="not found"):
        load_images([tmp_path / "none"], model, 160)
