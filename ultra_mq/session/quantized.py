# SPDX-License-Identifier: AGPL-3.0-or-later
"""A plan carried out on the torch model: quantizers, corrected biases, recovery; finished steps come from the cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultra_mq.core import BackendError, hash_key
from ultra_mq.plan import PrecisionPlan, check_plan
from ultra_mq.quantization import (
    Recovery,
    apply_formats,
    correct_biases,
    load_biases,
    load_recovered,
    load_recovery,
    recover,
    save_biases,
    save_recovery,
)
from ultra_mq.session.session import Session
from ultra_mq.session.stages import calibrate_layers

if TYPE_CHECKING:
    from torch import nn


def make_module(session: Session, plan: PrecisionPlan) -> nn.Module:
    """The plan on the torch model, calibrated, with bias correction and recovery where the recipe wants them.

    Raises:
        PlanError: The plan belongs to another model.
    """
    recipe, quantized = session.recipe, plan.quantized
    check_plan(plan, session.model)
    calibration = calibrate_layers(session, plan.placement)
    module = apply_formats(
        session.model, quantized, calibration, placement=plan.placement, reduce_range=session.reduce_range
    )
    if images := recipe.calibration.bias_correction if quantized else 0:

        def correct(folder: Path) -> None:
            batches = session.calibration_batches(images)
            save_biases(correct_biases(module, session.model.module, quantized, batches), folder)

        # Another number of threads rounds otherwise, and a graph must have the biases of its torch model.
        depends_on = {**_biases_key(session, plan), "device": session.device}
        load_biases(module, session.cache.folder("biases", depends_on, correct))
    if quantized and recipe.recover.enabled:

        def learn(folder: Path) -> None:
            unfinished = session.cache.root / "unfinished" / hash_key(module_key(session, plan))
            with session.stage("Recover"):
                images = session.calibration_batches(recipe.recover.images)
                epochs, seed = recipe.recover.epochs, recipe.seed
                found = recover(module, session.model.module, images, epochs, seed=seed, resume=unfinished)
            save_recovery(module, found, folder)
            shutil.rmtree(unfinished, ignore_errors=True)

        load_recovered(module, _recovered(session, plan, learn))
    return module


def module_key(session: Session, plan: PrecisionPlan) -> dict[str, Any]:
    """What the quantized torch model depends on."""
    recipe, key = session.recipe, _biases_key(session, plan)
    if not recipe.recover.enabled:
        return key
    images = session.calibration_batches(recipe.recover.images).fingerprint
    return {**key, "recover": recipe.recover.model_dump(), "learnt": images, "seed": recipe.seed}


def recovery_of(session: Session, plan: PrecisionPlan) -> Recovery:
    """What the recovery of a model came to that was made before."""

    def refuse(folder: Path) -> None:
        raise BackendError(f"'{folder}' is gone from the cache while it is in use. Run the same command again.")

    return load_recovery(_recovered(session, plan, refuse))


def _recovered(session: Session, plan: PrecisionPlan, make: Callable[[Path], None]) -> Path:
    depends_on = {**module_key(session, plan), "device": session.device.partition(":")[0]}
    return session.cache.folder("recovered", depends_on, make)


def _biases_key(session: Session, plan: PrecisionPlan) -> dict[str, Any]:
    """What the model depends on before it is recovered."""
    images = session.recipe.calibration.bias_correction
    return {
        "model": session.model.fingerprint,
        "imgsz": session.recipe.size,
        "formats": plan.quantized,
        "placement": plan.placement,
        "calibration": asdict(calibrate_layers(session, plan.placement)),
        "correction": session.calibration_batches(images).fingerprint if images else None,
        "reduce_range": session.reduce_range,
    }
