# SPDX-License-Identifier: AGPL-3.0-or-later
"""One model on one data set: loaded, checked, and what there is to tell about the run."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ultra_mq.cache import Cache
from ultra_mq.console import console, quiet, warn
from ultra_mq.data import Batches, Data, choose, fingerprint_split, load_data
from ultra_mq.errors import DataError, ModelError
from ultra_mq.model import PreparedModel, load_model
from ultra_mq.plan import check_bits
from ultra_mq.recipe import Recipe


@dataclass
class Session:
    """One run on its way: what is loaded, and what there is to tell at the end."""

    recipe: Recipe
    model: PreparedModel
    data: Data
    cache: Cache
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @functools.cached_property
    def evaluation_key(self) -> dict[str, Any]:
        """What every evaluation depends on beside the model; all images are read for it, so it is made once."""
        return {
            "images": fingerprint_split(self.data.evaluation),
            "names": {str(key): value for key, value in self.data.names.items()},
            "annotations": self.data.annotations.read_text() if self.data.annotations else None,
            "imgsz": self.recipe.imgsz,
        }

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and note how long it took."""
        console.print(f"[bold]{name}[/]")
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def warn(self, message: str) -> None:
        """Tell the user now, and again in the report."""
        warn(message)
        self.warnings.append(message)

    def calibration_batches(self, images: int) -> Batches:
        """The recipe's choice of ``images`` calibration images."""
        chosen = choose(self.data.calibration, images, self.recipe.seed)
        return Batches(self.data.calibration, chosen, self.recipe.batch, torch_device(self.recipe.device))


def open_session(recipe: Recipe, cache: Cache | None = None, model: PreparedModel | None = None) -> Session:
    """Load the model and the data, and check everything that can be checked before work starts.

    Args:
        recipe: What to do.
        cache: Cache to use; the default one where it is None.
        model: A model that is prepared already, in place of the recipe's weights.

    Raises:
        UltraMQError: The model or the data cannot be used.
    """
    if model is None:
        with quiet():
            model = load_model(recipe.model, torch_device(recipe.device))
    if model.task == "classify":
        raise ModelError(
            f"'{model.source}' is a classify model, whose data this command does not read yet. "
            f"See docs/python.md for the stages that take batches of your own."
        )
    data = load_data(recipe.data, recipe.imgsz, model.stride, task=model.task, fraction=recipe.fraction)
    if len(data.names) != len(model.names):
        raise DataError(
            f"'{model.source}' knows {len(model.names)} classes and '{recipe.data}' has {len(data.names)}. "
            f"Pass the data that the model was trained on."
        )
    session = Session(recipe, model, data, cache or Cache())
    for split in (data.calibration, data.evaluation):
        if split.skipped:
            session.warn(f"{split.skipped} unreadable images of the {split.name} split were left out.")
    if data.overlap:
        session.warn(
            f"{data.overlap} of {len(data.evaluation.images)} evaluation images are calibration images too; "
            f"accuracy on them flatters the quantized model."
        )
    for variant in recipe.variants:
        if variant.bits is not None and (message := check_bits(variant.bits)):
            session.warn(message)
    return session


def require_detection(session: Session) -> None:
    """Refuse a task whose results cannot be proven yet, before work starts.

    Raises:
        ModelError: The model is not a detector.
    """
    if session.model.task != "detect":
        raise ModelError(
            f"'{session.model.source}' is a {session.model.task} model, and accuracy is proven for detection only so "
            f"far. Quantize it in Python with ultra_mq.quantize(), and validate it with Ultralytics."
        )


def torch_device(device: str) -> str:
    """Torch's name of a recipe's device: ``0`` is ``cuda:0``, ``auto`` the first GPU where there is one."""
    if device == "auto":
        import torch

        return "cuda:0" if torch.cuda.is_available() else "cpu"
    return f"cuda:{device}" if device.isdigit() else device
