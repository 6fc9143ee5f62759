# SPDX-License-Identifier: AGPL-3.0-or-later
"""One model on one data set: loaded, checked, and what there is to tell about the run."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ultra_mq.core import BackendError, Cache, announce, quiet, sha256_of, warn
from ultra_mq.plan import check_bits
from ultra_mq.prepare import (
    Batches,
    Data,
    PreparedModel,
    choose,
    fingerprint_split,
    load_data,
    load_images,
    load_model,
    torch_device,
)
from ultra_mq.runtimes import EngineTarget, Runtime, find_runtime, overflows
from ultra_mq.session.checks import check_data, complete_recipe
from ultra_mq.session.forecast import Forecast, about
from ultra_mq.session.recipe import Recipe
from ultra_mq.session.target import Target, find_target


@dataclass
class Session:
    """One run on its way: what is loaded, and what there is to tell at the end.

    Attributes:
        recipe: What to do, with what the checkpoint says of data and image size.
        model: The model, prepared.
        data: The data, scanned.
        cache: Where finished stages lie.
        device: Torch device, such as ``cuda:0``.
        warnings: What the user should know.
        seconds: Stage to wall time.
        forecast: Stages to come, where they are known.
    """

    recipe: Recipe
    model: PreparedModel
    data: Data
    cache: Cache
    device: str
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    forecast: Forecast | None = field(default=None, repr=False)
    _asked: dict[EngineTarget, Runtime | BackendError] = field(default_factory=dict, repr=False)

    def engine_runtime(self, target: EngineTarget) -> Runtime:
        """TensorRT or TensorRT-RTX; asked for once, because it takes seconds to answer.

        Raises:
            BackendError: It cannot be used here.
        """
        if target not in self._asked:
            try:
                self._asked[target] = find_runtime(self.recipe.build_settings(target))
            except BackendError as error:
                self._asked[target] = error
        answer = self._asked[target]
        if isinstance(answer, BackendError):
            raise answer
        return answer

    @functools.cached_property
    def target(self) -> Target:
        """Where budgets are proven.

        Raises:
            BackendError: The recipe's runtime cannot be used here.
        """
        return find_target(self.recipe, self.engine_runtime, self.warn)

    @functools.cached_property
    def judged(self) -> Session:
        """The run with the images that a search counts agreement on: val and, where given, ``agreement_data``."""
        more = self.recipe.agreement_data
        if more is None:
            return self
        known = getattr(self.data.evaluation.dataset, "img_path", [])
        split = load_images([*([known] if isinstance(known, str) else known), more], self.model, self.recipe.size)
        data = replace(self.data, evaluation=split, annotations=None)
        return replace(self, data=data)

    @functools.cached_property
    def evaluation_key(self) -> dict[str, Any]:
        """What every evaluation depends on beside the model; all images are read for it, so it is made once."""
        return {
            "images": fingerprint_split(self.data.evaluation),
            "names": {str(key): value for key, value in self.data.names.items()},
            "annotations": sha256_of(self.data.annotations) if self.data.annotations else None,
            "imgsz": self.recipe.size,
            "channels": self.data.channels,
            "task": self.data.task,
            "single_cls": self.data.single_cls,
        }

    @functools.cached_property
    def reduce_range(self) -> bool:
        """Whether weights are to use 7 bits, because the CPU that runs them would overflow."""
        asked = self.recipe.calibration.reduce_range
        if asked is not None:
            return asked
        needed = self.recipe.runtime == "openvino" and overflows()
        if needed:
            self.warn(
                "Weights use 7 of their 8 bits, because this CPU has no VNNI and OpenVINO sums 8-bit products in 16 "
                "bits on it (calibration.reduce_range)."
            )
        return needed

    @property
    def unsigned(self) -> bool:
        """Whether activations are unsigned with their zero at 128, which OpenVINO computes right on every CPU."""
        return self.recipe.runtime == "openvino"

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and note how long it took."""
        left = None
        if self.forecast:
            self.forecast.begin(name)
            left = self.forecast.seconds_left
        announce(name if left is None else f"{name} (the run takes about {about(left)} more)")
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self.forecast:
            self.forecast.end(name, seconds)

    def warn(self, message: str) -> None:
        """Tell the user now, and again in the report; once, however often it is said."""
        if message not in self.warnings:
            warn(message)
            self.warnings.append(message)

    def calibration_batches(self, images: int) -> Batches:
        """The recipe's choice of ``images`` calibration images."""
        chosen = choose(self.data.calibration, images, self.recipe.seed)
        return Batches(self.data.calibration, chosen, self.recipe.batch, self.device)


def open_session(recipe: Recipe, cache: Cache | None = None, model: PreparedModel | None = None) -> Session:
    """Load the model and the data, and check everything that can be checked before work starts.

    Args:
        recipe: What to do.
        cache: Cache to use; the default one where it is None.
        model: A model that is prepared already, in place of the recipe's weights.

    Raises:
        UltraMQError: The model or the data cannot be used.
    """
    device = torch_device(recipe.device)
    if model is None:
        with quiet():
            model = load_model(recipe.model, device)
    recipe, said = complete_recipe(recipe, model)
    data = load_data(
        recipe.data,
        recipe.size,
        model.stride,
        task=model.task,
        fraction=recipe.fraction,
        single_cls=bool(recipe.single_cls),
        classes=model.names,
    )
    said += check_data(recipe, model, data)
    session = Session(recipe, model, data, cache or Cache(), device)
    for line in said:
        session.warn(line)
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


def with_recipe(session: Session, recipe: Recipe) -> Session:
    """The same run with other settings of its stages; what was read of model and data stays read."""
    other = replace(session, recipe=recipe)
    other.__dict__["evaluation_key"] = session.evaluation_key
    return other
