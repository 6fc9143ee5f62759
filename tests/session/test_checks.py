# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a recipe leaves to the checkpoint."""

import dataclasses

import pytest
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

from ultra_mq.core.errors import DataError
from ultra_mq.session.checks import complete_recipe
from ultra_mq.session.recipe import make_recipe


@pytest.fixture
def trained(model):
    """The model as if it had been trained with other settings."""
    return lambda **changes: dataclasses.replace(model, **changes)


COCO = YAML.load(check_yaml("coco128.yaml"))["names"]


def test_what_is_said_stays(trained, shapes):
    recipe = make_recipe({"data": "mine.yaml", "imgsz": 96, "single_cls": False})
    completed, said = complete_recipe(
        recipe, trained(train_args={"data": str(shapes), "imgsz": 320, "single_cls": True})
    )
    assert (completed.data, completed.imgsz, completed.single_cls, said) == ("mine.yaml", 96, False, [])


def test_what_is_not_said_is_that_of_the_training(trained, shapes):
    model = trained(train_args={"data": str(shapes), "imgsz": 320, "single_cls": True})
    completed, (said,) = complete_recipe(make_recipe({}), model)
    assert (completed.data, completed.imgsz, completed.single_cls) == (str(shapes), 320, True)
    assert said.endswith(f"data={shapes} imgsz=320 single_cls=True.")


@pytest.mark.parametrize(
    ("size", "imgsz"), [(600, 608), (None, 640), ([384, 640], (384, 640)), ([640], 640), ([630, 640], 640)]
)
def test_the_size_is_a_multiple_of_the_stride(trained, shapes, size, imgsz):
    model = trained(train_args={"data": str(shapes), "imgsz": size})
    assert complete_recipe(make_recipe({}), model)[0].imgsz == imgsz


def test_only_models_of_coco_fall_back_to_coco(trained):
    gone = {"data": "/where/it/was.yaml"}
    assert complete_recipe(make_recipe({}), trained(names=COCO, train_args=gone))[0].data == "coco128.yaml"
    with pytest.raises(DataError, match=r"was trained on '/where/it/was\.yaml', which is not here"):
        complete_recipe(make_recipe({}), trained(train_args=gone))


def test_a_data_set_that_ultralytics_has_fetched(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("ultralytics.utils.DATASETS_DIR", tmp_path)
    model = trained(names=COCO, train_args={"data": "coco8.yaml"})
    assert complete_recipe(make_recipe({}), model)[0].data == "coco128.yaml"
    (tmp_path / "coco8").mkdir()
    assert complete_recipe(make_recipe({}), model)[0].data == "coco8.yaml"
