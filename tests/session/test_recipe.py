# SPDX-License-Identifier: AGPL-3.0-or-later
from pathlib import Path

import pytest

from ultra_mq.core.errors import BudgetError, RecipeError
from ultra_mq.session.recipe import Recipe, load_recipe, make_recipe, save_recipe

RECIPES = sorted((Path(__file__).parent.parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes(path):
    assert load_recipe(path).model == "yolo11n.pt"


def test_the_wanted_recipes_are_shipped():
    assert {"int8-uniform", "mixed-9bit", "fp16", "compare", "yolo11n-int8"} <= {path.stem for path in RECIPES}
    compared = {variant.precision for variant in load_recipe(RECIPES[0].with_name("compare.yaml")).variants}
    assert compared == {"fp16", "int8", "mixed", "ptq"}


def test_overrides():
    recipe = make_recipe({}, ["data=x.yaml", "imgsz=320", "device=0", "calibration.images=64", "name=a"])
    assert (recipe.data, recipe.imgsz, recipe.device, recipe.name) == ("x.yaml", 320, "0", "a")
    assert recipe.calibration.images == 64
    assert recipe.calibration.method == Recipe().calibration.method


def test_a_saved_recipe_is_the_same_recipe(tmp_path):
    recipe = make_recipe({"variants": [{"name": "a", "precision": "int8"}, {"name": "b", "bits": 9.5}]}, ["seed=3"])
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("document", "overrides", "message"),
    [
        ({"modle": "x.pt"}, [], "unknown key 'modle', did you mean 'model'"),
        ({"calibration": {"image": 3}}, [], r"unknown key 'calibration\.image', did you mean 'images'"),
        ({}, ["imgs=3"], "unknown key 'imgs', did you mean 'imgsz'"),
        ({"imgsz": "large"}, [], "'imgsz': .*got 'large'"),
        ({}, ["imgsz"], "Write key=value"),
        ({}, ["data.path=3"], None),
        ({"data": "x.yaml"}, ["data.path=3"], "which holds a single value"),
        ({}, ["imgsz=[1"], "not valid YAML"),
        ({"variants": []}, [], "variants"),
        ({"variants": [{"name": "a b", "precision": "int8"}]}, [], "name"),
        ({"variants": [{"name": "a", "precision": "int8", "bits": 9}]}, [], "precision 'mixed' needs a budget"),
        ({"variants": [{"name": "a"}]}, [], "precision 'mixed' needs a budget"),
        ({"variants": [{"name": "a", "bits": 9}, {"name": "a", "bits": 10}]}, [], "name of its own"),
        ({"variants": [{"name": "a", "bits": 9}, {"name": "A", "bits": 10}]}, [], "name of its own"),
        ({"variants": [{"name": "fp32", "precision": "int8"}]}, [], "no variant can be called 'fp32'"),
        ({"variants": [{"name": "accuracy", "precision": "int8"}]}, [], "no variant can be called 'accuracy'"),
        ({"variants": [{"name": "..", "precision": "int8"}]}, [], "name"),
        ({"variants": [{"name": ".hidden", "precision": "int8"}]}, [], "name"),
        ({"engine": {"compute_capability": "sm89"}}, [], "compute_capability"),
    ],
)
def test_faults(document, overrides, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe(document, overrides)


@pytest.mark.parametrize("bits", [0, -3, 17])
def test_bits_are_checked_with_the_recipe(bits):
    with pytest.raises(BudgetError, match="outside"):
        make_recipe({"variants": [{"name": "a", "bits": bits}]})


@pytest.mark.parametrize("text", ["[1, 2", "- 1\n", "word"])
def test_files_that_are_no_recipes(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "r.yaml")


def test_missing_file():
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    "section", [{"variants": [{"name": "a", "bits": 9, "confidence": 0.9}]}, {"criteria": {"confidence": 0.9}}]
)
def test_a_confidence_is_of_a_loss(section):
    with pytest.raises(RecipeError, match="there is no max_drop"):
        make_recipe(section)
    recipe = make_recipe({"variants": [{"name": "a", "max_drop": 1, "confidence": 0.9}]})
    assert recipe.variants[0].confidence == 0.9
