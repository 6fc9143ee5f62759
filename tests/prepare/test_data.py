# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ultra_mq.core.errors import DataError
from ultra_mq.measure.agreement import score_agreement
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.prepare.annotations import find_annotations, match_images
from ultra_mq.prepare.data import Batches, choose, fingerprint_split
from ultra_mq.prepare.datasets import load_data
from ultra_mq.prepare.model import load_model


@pytest.fixture
def own_shapes(shapes, tmp_path):
    """A copy of the data set that a test may damage."""
    folder = tmp_path / "shapes"
    shutil.copytree(shapes.parent, folder)
    for cache in folder.rglob("*.cache"):
        cache.unlink()
    document = yaml.safe_load((folder / "shapes.yaml").read_text())
    (folder / "shapes.yaml").write_text(yaml.safe_dump({**document, "path": str(folder)}))
    return folder / "shapes.yaml"


def test_splits(data):
    assert len(data.calibration.images) == 16
    assert len(data.evaluation.images) == 12
    assert data.calibration.labelled
    assert data.overlap == 0
    assert data.calibration.images == sorted(data.calibration.images)


def test_choice_is_deterministic(data):
    assert choose(data.calibration, 5, seed=3) == choose(data.calibration, 5, seed=3)
    assert choose(data.calibration, 5, seed=3) != choose(data.calibration, 5, seed=4)
    assert choose(data.calibration, 99) == list(range(16))


def test_batches_can_be_read_again(data):
    batches = Batches(data.calibration, [0, 1, 2], batch=2)
    first, second = list(batches), list(batches)
    assert [len(batch["img"]) for batch in first] == [2, 1]
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one["img"], two["img"])
    assert first[0]["img"].dtype == torch.float32
    assert 0 <= first[0]["img"].min() < first[0]["img"].max() <= 1


def test_images_are_those_of_ultralytics_validator(data, weights, shapes):
    from ultralytics.models.yolo.detect import DetectionValidator

    seen = []

    class Spy(DetectionValidator):
        def preprocess(self, batch):
            batch = super().preprocess(batch)
            seen.append(batch["img"].clone())
            return batch

    settings = {"data": str(shapes), "imgsz": data.imgsz, "batch": 4, "rect": False, "plots": False, "workers": 0}
    Spy(args={**settings, "task": "detect", "device": "cpu"})(model=str(weights))
    ours = torch.cat([batch["img"] for batch in Batches(data.evaluation, list(range(12)), batch=4)])
    assert torch.equal(torch.cat(seen), ours)


def test_fingerprint_follows_content(own_shapes):
    before = fingerprint_split(load_data(own_shapes, 160, 32).evaluation)
    assert fingerprint_split(load_data(own_shapes, 320, 32).evaluation) == before
    label = own_shapes.parent / "labels" / "val" / "00000.txt"
    label.write_text("0 0.5 0.5 0.2 0.2\n")
    assert fingerprint_split(load_data(own_shapes, 160, 32).evaluation) != before


def test_fraction(own_shapes):
    data = load_data(own_shapes, 160, 32, fraction=0.5)
    assert len(data.calibration.images) == 8
    assert len(data.evaluation.images) == 6


def test_overlap_is_counted(own_shapes):
    document = yaml.safe_load(own_shapes.read_text())
    own_shapes.write_text(yaml.safe_dump({**document, "val": document["train"]}))
    assert load_data(own_shapes, 160, 32).overlap == 16


@pytest.mark.parametrize("imgsz", [100, 0, -32])
def test_imgsz_must_fit_the_stride(shapes, imgsz):
    with pytest.raises(DataError, match=f"imgsz={imgsz} is not a multiple of the model's stride 32"):
        load_data(shapes, imgsz, 32)


def test_missing_yaml():
    with pytest.raises(DataError, match=r"'nowhere\.yaml' cannot be used"):
        load_data("nowhere.yaml", 160, 32)


def test_yaml_without_images(own_shapes):
    shutil.rmtree(own_shapes.parent / "images" / "train")
    (own_shapes.parent / "images" / "train").mkdir()
    with pytest.raises(DataError, match=r"'train' split .* has no usable images"):
        load_data(own_shapes, 160, 32)


def test_few_corrupt_images_are_skipped(own_shapes):
    val = own_shapes.parent / "images" / "val"
    for number in range(12, 39):
        shutil.copy(val / "00000.jpg", val / f"{number:05d}.jpg")
    (val / "broken.jpg").write_bytes(b"not an image")
    data = load_data(own_shapes, 160, 32)
    assert data.evaluation.skipped == 1
    assert len(data.evaluation.images) == 39


def test_many_corrupt_images_are_an_error(own_shapes):
    (own_shapes.parent / "images" / "val" / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"1 of 13 images in the 'val' split .* cannot be read"):
        load_data(own_shapes, 160, 32)


def test_unlabelled_data(own_shapes):
    shutil.rmtree(own_shapes.parent / "labels")
    data = load_data(own_shapes, 160, 32)
    assert not data.calibration.labelled
    assert len(data.evaluation.images) == 12


def annotations_of(root, data):
    evaluation = data.evaluation
    return find_annotations(root, evaluation.images, list(evaluation.names.values()), data.names)[0]


CATEGORIES = [{"name": name} for name in ("circle", "square", "triangle", "star", "cross")]


def test_annotations_are_found_by_file_names(tmp_path, data):
    folder = tmp_path / "annotations"
    folder.mkdir()
    names = [path.name for path in data.evaluation.images]
    (folder / "instances_a.json").write_text(json.dumps({"images": [{"file_name": names[0], "id": 1}]}))
    (folder / "instances_broken.json").write_text("{")
    assert annotations_of(tmp_path, data) is None
    whole = {"images": [{"file_name": f"val2017/{name}", "id": name} for name in [*names, "more.jpg"]]}
    whole["categories"] = CATEGORIES
    (folder / "instances_z.json").write_text(json.dumps(whole))
    assert annotations_of(tmp_path, data) == folder / "instances_z.json"


def two_cameras(shapes, tmp_path):
    """The val split as two folders whose pictures have the same names."""
    for camera, offset in (("cam1", 0), ("cam2", 6)):
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            folder = tmp_path / kind / camera
            folder.mkdir(parents=True)
            for number in range(6):
                source = shapes.parent / kind / "val" / f"{number + offset:05d}.{suffix}"
                shutil.copy(source, folder / f"{number:05d}.{suffix}")
    document = yaml.safe_load(shapes.read_text())
    val = [str(tmp_path / "images" / camera) for camera in ("cam1", "cam2")]
    path = tmp_path / "cameras.yaml"
    path.write_text(yaml.safe_dump({**document, "path": str(shapes.parent), "val": val}))
    return path


def test_pictures_of_one_name_in_two_folders_are_two(shapes, weights, tmp_path):
    """They were one image in agreement and interval: a box found in the wrong picture counted as right."""
    data = load_data(two_cameras(shapes, tmp_path), 160, 32)
    names = [f"{camera}/{number:05d}.jpg" for camera in ("cam1", "cam2") for number in range(6)]
    assert list(data.evaluation.names.values()) == names
    accuracy = evaluate(load_model(weights).module, data, label="cameras")
    assert sorted(accuracy.predictions.images) == names
    assert set(accuracy.predictions.file_names) <= set(names)
    first = accuracy.predictions.file_names[0]
    other = first.replace("cam1", "camX").replace("cam2", "cam1").replace("camX", "cam2")
    moved = dataclasses.replace(accuracy.predictions, file_names=(other, *accuracy.predictions.file_names[1:]))
    assert score_agreement(accuracy.predictions, accuracy.predictions) == 1
    assert score_agreement(moved, accuracy.predictions) < 1


def test_pictures_of_one_folder_keep_their_file_names(data):
    assert list(data.evaluation.names.values()) == [path.name for path in data.evaluation.images]


def test_images_are_matched_to_annotations_by_path_then_by_a_unique_name():
    entries = [{"file_name": name, "id": index} for index, name in enumerate(("a/1.jpg", "b/1.jpg", "b/2.jpg"))]
    assert match_images(entries, ["b/1.jpg", "2.jpg"]) == {"b/1.jpg": 1, "2.jpg": 2}
    assert match_images(entries, ["1.jpg"]) is None
    assert match_images(entries, ["3.jpg"]) is None


def test_the_annotations_of_the_other_split_are_not_read(tmp_path, data, monkeypatch):
    """Those of COCO's train split are 450 MB of JSON."""
    folder = tmp_path / "annotations"
    folder.mkdir()
    entries = [{"file_name": path.name, "id": path.name} for path in data.evaluation.images]
    for split in ("train", "val"):
        (folder / f"instances_{split}.json").write_text(json.dumps({"images": entries, "categories": CATEGORIES}))
    read = []
    monkeypatch.setattr(
        Path, "read_text", lambda self, read_text=Path.read_text: (read.append(self), read_text(self))[1]
    )
    assert annotations_of(tmp_path, data).name == "instances_val.json"
    assert [path.name for path in read] == ["instances_val.json"]


def test_annotations_without_masks_prove_no_masks(tmp_path, data):
    (tmp_path / "annotations").mkdir()
    entries = [{"file_name": path.name, "id": path.name} for path in data.evaluation.images]
    document = {"images": entries, "categories": CATEGORIES, "annotations": [{"bbox": [0, 0, 1, 1]}]}
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(document))
    evaluation = data.evaluation
    given = (tmp_path, evaluation.images, list(evaluation.names.values()), data.names)
    assert find_annotations(*given, "detect")[0] is not None
    found, reason = find_annotations(*given, "segment")
    assert found is None
    assert "has objects without 'segmentation'" in reason


@pytest.mark.parametrize("text", ["[]", "{", '{"images": 3}'])
def test_json_that_is_no_annotation_file(tmp_path, data, text):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(text)
    assert annotations_of(tmp_path, data) is None


def test_letterbox_pads_and_does_not_stretch(own_shapes):
    import cv2

    picture = np.full((100, 320, 3), 255, np.uint8)
    cv2.imwrite(str(own_shapes.parent / "images" / "val" / "00000.jpg"), picture)
    image = next(iter(Batches(load_data(own_shapes, 160, 32).evaluation, [0], 1)))["img"][0]
    white = (image > 0.9).all(0)
    assert white.any(1).sum() == 50
    assert torch.allclose(image[:, 0, 0], torch.tensor(114 / 255))
