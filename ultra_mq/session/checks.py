# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a checkpoint says of its training, and whether model and data belong together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ultra_mq.core import DataError
from ultra_mq.prepare import Data, PreparedModel
from ultra_mq.session.recipe import AUTO_DATA, DEFAULT_IMGSZ, Recipe

SMALL_DATA = {
    "detect": "coco128.yaml",
    "segment": "coco128-seg.yaml",
    "pose": "coco8-pose.yaml",
    "obb": "dota8.yaml",
    "classify": "imagenet10",
}
"""Small data sets that Ultralytics downloads, for models with their classes."""

TRAIN_ON = "Pass the data that the model was trained on"

SHOWN = 3
"""Differences that a message names."""


def complete_recipe(recipe: Recipe, model: PreparedModel) -> tuple[Recipe, list[str]]:
    """Fill in what a recipe leaves to the checkpoint: data, image size, single_cls.

    Args:
        recipe: What to do.
        model: The model with what it was trained with.

    Returns:
        The recipe without gaps, and what the user should know of it.

    Raises:
        DataError: There is no data, in the recipe or anywhere the checkpoint says.
    """
    trained = model.train_args
    found: dict[str, object] = {}
    words = []
    if recipe.data == AUTO_DATA:
        known = str(trained.get("data") or "")
        if known and _is_here(known):
            found["data"] = known
            words.append(f"data={known}")
        else:
            found["data"] = small_data(model.source, model.task, model.names, known)
    if recipe.imgsz is None:
        size = trained.get("imgsz") or DEFAULT_IMGSZ
        # Ultralytics trains at the next multiple of the stride, too.
        sizes = [-(-pixels // model.stride) * model.stride for pixels in (size if isinstance(size, list) else [size])]
        found["imgsz"] = sizes[0] if len(set(sizes)) == 1 else tuple(sizes[:2])
        if found["imgsz"] != DEFAULT_IMGSZ:
            words.append(f"imgsz={found['imgsz']}")
    if recipe.single_cls is None:
        found["single_cls"] = bool(trained.get("single_cls", False))
        if found["single_cls"]:
            words.append("single_cls=True")
    said = [f"Taken from the training of '{model.source}': {' '.join(words)}."] if words else []
    return recipe.model_copy(update=found), said


def check_data(recipe: Recipe, model: PreparedModel, data: Data) -> list[str]:
    """Refuse data that cannot belong to the model.

    Args:
        recipe: What to do.
        model: The model.
        data: The data.

    Returns:
        What the user should know.

    Raises:
        DataError: Classes, channels or keypoints differ in number.
    """
    # Ultralytics drops a classifier's folders that the model has no class for, and may miss some that it has.
    fewer = data.task == "classify" and len(data.names) < len(model.names)
    check_fit(model.source, None if fewer else model.names, model.channels, recipe.data, data)
    if model.kpt_shape and data.kpt_shape != model.kpt_shape:
        raise DataError(
            f"'{model.source}' has kpt_shape {list(model.kpt_shape)} and '{recipe.data}' has "
            f"{list(data.kpt_shape) if data.kpt_shape else 'none'}. {TRAIN_ON}."
        )
    said = list(data.remarks)
    if model.dead:
        said.append(
            f"{len(model.dead)} layers stay in float because their input is always zero, as behind a pruned branch: "
            f"{', '.join(model.dead[:SHOWN])}{', ...' if model.dead[SHOWN:] else ''}."
        )
    others = [(index, name, data.names.get(index, "")) for index, name in model.names.items()]
    differing = [(index, name, other) for index, name, other in others if other not in (name, "")]
    if differing and data.task != "classify":
        shown = ", ".join(f"{index} is '{name}' and '{other}'" for index, name, other in differing[:SHOWN])
        said.append(
            f"{len(differing)} classes are called otherwise in the data than in the model: {shown}"
            f"{', ...' if differing[SHOWN:] else ''}. Figures are by number: check that these are the same things."
        )
    twice = sorted({name for name in model.names.values() if list(model.names.values()).count(name) > 1})
    if twice:
        said.append(f"The model has several classes called {', '.join(twice[:SHOWN])}.")
    return said


def check_fit(source: str, names: Mapping[int, str] | None, channels: int, given: str, data: Data) -> None:
    """Refuse data whose classes or channels are not as many as a model's.

    Args:
        source: The model, for the message.
        names: Its class names; None where their number does not matter.
        channels: Channels of an image that it takes.
        given: The data as the user names them, for the message.
        data: The data.

    Raises:
        DataError: They differ.
    """
    if names and len(data.names) != len(names):
        raise DataError(f"'{source}' knows {len(names)} classes and '{given}' has {len(data.names)}. {TRAIN_ON}.")
    if data.channels != channels:
        raise DataError(
            f"'{source}' takes images of {channels} channels and '{given}' has {data.channels}. "
            f"{TRAIN_ON}, or write channels: {channels} into its YAML."
        )


def _is_here(data: str) -> bool:
    """Whether data can be read without a download: a path, or the name of a data set that Ultralytics has fetched."""
    from ultralytics.utils import DATASETS_DIR, YAML
    from ultralytics.utils.checks import check_file

    if Path(data).exists() or (DATASETS_DIR / data).is_dir():
        return True
    shipped = check_file(data, hard=False) if data.endswith((".yaml", ".yml")) else ""
    folder = YAML.load(shipped).get("path") if shipped else None
    return bool(folder) and (DATASETS_DIR / str(folder)).is_dir()


def small_data(source: str, task: str, names: Mapping[int, str], trained_on: object) -> str:
    """The small data set of Ultralytics that a model's classes are those of.

    Args:
        source: The model, for the message.
        task: Ultralytics task.
        names: Class index to class name.
        trained_on: What the checkpoint says that it was trained on.

    Raises:
        DataError: They are no classes of such a data set.
    """
    from ultralytics.utils import YAML
    from ultralytics.utils.checks import check_yaml

    small = SMALL_DATA[task]
    of_imagenet = task == "classify" and len(names) == 1000
    known = of_imagenet or (task != "classify" and YAML.load(check_yaml(small))["names"] == dict(names))
    if not known:
        trained = f"was trained on '{trained_on}', which is not here" if trained_on else "does not name its data"
        raise DataError(f"There is no data to prove '{source}' on: it {trained}. Pass it with data=path/to/data.yaml.")
    return small
