# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a session finds out once for all plans: ranges, scores, groups, and the plans of budgets of bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from ultra_mq.core import DataError
from ultra_mq.plan import (
    BITS_MODELS,
    Choices,
    CostModel,
    LatencyModel,
    PrecisionPlan,
    Prices,
    Sensitivity,
    layer_sizes,
    make_choices,
    measure_perturbation,
    measure_sensitivity,
    solve_plan,
    uniform_plan,
)
from ultra_mq.prepare import Batches, Placement, find_groups
from ultra_mq.quantization import Calibration, calibrate
from ultra_mq.session.recipe import Recipe
from ultra_mq.session.session import Session
from ultra_mq.session.variant import Variant

T = TypeVar("T")


def calibrate_layers(session: Session, placement: Placement | None = None) -> Calibration:
    """Input ranges of all layers for a placement, the recipe's by default, from the cache where they are known."""
    settings = session.recipe.calibration
    batches = session.calibration_batches(settings.images)
    placement = placement or session.recipe.placement
    depends_on = {**_inputs(session, batches), "method": settings.method, "joins": placement == "runtime"}

    def make(folder: Path) -> None:
        with session.stage("Calibrate"):
            _write_json(folder / "calibration.json", calibrate(session.model, batches, settings.method, placement))

    folder = session.cache.folder("calibration", depends_on, make)
    return _read_json(folder / "calibration.json", Calibration)


def score_layers(session: Session) -> Sensitivity:
    """Sensitivity of all layers, from the cache where it is known."""
    settings = session.recipe.sensitivity
    if settings.loss == "labels" and not session.data.calibration.labelled:
        raise DataError(
            f"The train split of '{session.recipe.data}' has no labels, and sensitivity.loss=labels needs them. "
            f"Use sensitivity.loss=outputs."
        )
    calibration = calibrate_layers(session)
    batches = session.calibration_batches(settings.images)
    depends_on = {
        **_inputs(session, batches),
        "method": settings.method,
        "loss": settings.loss,
        "formats": session.recipe.formats,
        "seed": session.recipe.seed,
        "calibration": asdict(calibration),
        "placement": session.recipe.placement,
    }

    def make(folder: Path) -> None:
        with session.stage("Score"):
            recipe = session.recipe
            if settings.method == "perturb":
                placement: Placement = "torch" if recipe.placement == "onnx" else recipe.placement
                scores = measure_perturbation(session.model, calibration, batches, recipe.formats, placement)
            else:
                scores = measure_sensitivity(
                    session.model, calibration, batches, settings.loss, recipe.formats, recipe.seed
                )
            _write_json(folder / "sensitivity.json", scores)

    folder = session.cache.folder("sensitivity", depends_on, make)
    return _read_json(folder / "sensitivity.json", Sensitivity)


def open_choices(session: Session, latency: LatencyModel | None = None) -> Choices:
    """What there is to choose for a session: scores, sizes, groups, and latencies where they were learnt."""
    sizes = {name: layer_sizes(session.model, name, session.recipe.size) for name in BITS_MODELS}
    return make_choices(score_layers(session), sizes, decision_groups(session), latency)


def prices_of(session: Session, cost_model: CostModel, latency: LatencyModel | None = None) -> Prices:
    """What layers cost under a cost model; weights are counted beside a latency."""
    return Prices(cost_model, layer_sizes(session.model, cost_model, session.recipe.size), latency)


def plan_variant(session: Session, variant: Variant) -> PrecisionPlan:
    """The plan of a variant: uniform, or solved from the scores for a budget of bits."""
    if variant.bits is None:
        return uniform_plan(session.model, variant.precision, session.recipe.placement)
    return solve_bits(session, open_choices(session), variant.bits)


def solve_bits(session: Session, choices: Choices, bits: float) -> PrecisionPlan:
    """The plan with the least sum of scores for a budget of bits, over MACs where the recipe says so."""
    plan = solve_plan(session.model, choices, counted_bits(session.recipe), bits)
    return signed(session, plan)


def signed(session: Session, plan: PrecisionPlan, budget: Mapping[str, float] | None = None) -> PrecisionPlan:
    """A plan with what it was made for: placement, scored images, budgets."""
    return replace(
        plan,
        placement=session.recipe.placement,
        data_fingerprint=session.calibration_batches(session.recipe.sensitivity.images).fingerprint,
        budget=dict(budget or {}),
    )


def counted_bits(recipe: Recipe) -> CostModel:
    """What a budget of bits averages over; a latency has no bits, so weights are counted beside it."""
    return recipe.cost_model if recipe.cost_model in BITS_MODELS else "weights"


def decision_groups(session: Session) -> tuple[tuple[str, ...], ...]:
    """Layers that take one decision; every layer alone where the recipe wants that."""
    layers = [layer.name for layer in session.model.quantizable]
    return find_groups(session.model.flow, layers) if session.recipe.groups else tuple((layer,) for layer in layers)


def _inputs(session: Session, batches: Batches) -> dict[str, Any]:
    return {
        "model": session.model.fingerprint,
        "images": batches.fingerprint,
        "imgsz": session.recipe.size,
        "batch": session.recipe.batch,
        "channels": session.data.channels,
        "device": session.device.partition(":")[0],
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(TypeAdapter(type(value)).dump_json(value))


def _read_json(path: Path, kind: type[T]) -> T:
    return TypeAdapter(kind).validate_python(json.loads(path.read_text()))
