# SPDX-License-Identifier: AGPL-3.0-or-later
"""A ``PrecisionPlan``: a precision for every layer, as a value and as a file one can read and edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ConfigDict, TypeAdapter

from ultra_mq.cost import CostModel, average_bits, cost_in_format
from ultra_mq.errors import BudgetError, PlanError
from ultra_mq.files import write_text
from ultra_mq.formats import FLOAT, FORMATS
from ultra_mq.latency import LatencyModel
from ultra_mq.model import PreparedModel
from ultra_mq.placement import Placement
from ultra_mq.schema import validate

Why = Literal["searched", "kept", "repaired", "user"]
FLOAT_BITS = FORMATS[FLOAT].bits


@dataclass(frozen=True)
class LayerPlan:
    """What one layer becomes.

    Attributes:
        name: Module path.
        format: Format name, ``fp16`` for a layer left in float.
        score: Sensitivity in that format; 0 in float, None where nothing was scored.
        cost: Size times bits in the plan's cost model, or milliseconds for ``latency``; 0 for kept layers, which are
            outside the count.
        why: ``searched`` by the solver, ``kept`` by rule, ``repaired`` after a failed build, or set by the ``user``.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    format: str
    score: float | None
    cost: float
    why: Why


@dataclass(frozen=True)
class PrecisionPlan:
    """A precision for every layer of one model.

    Attributes:
        schema: Tag and version of the file layout.
        model: Source of the weights, for the reader.
        model_fingerprint: SHA-256 of the weights; a plan of another model is refused.
        data_fingerprint: SHA-256 of the images that were scored, or None for a plan made without scores.
        formats: Formats the solver could choose from, beside float.
        cost_model: What the budget counts.
        budget_bits: Bits asked for, or None where the budget was another one.
        budget_bits_reached: Bits reached in the plan's cost model, averaged over the quantizable layers; over their
            weights where the cost is a latency.
        bits: ModelOpt's effective bits: bits averaged over the quantizable weights.
        layers: All layers in the order of the forward pass, kept ones last.
        placement: Where Q/DQ stand beside the layers.
        budget: Budgets of accuracy and latency that the plan was searched for, by the names of a recipe.
        predicted_ms: Latency that the cost model ``latency`` expects.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    schema: Literal["ultra-mq/plan/1"]
    model: str
    model_fingerprint: str
    data_fingerprint: str | None
    formats: tuple[str, ...]
    cost_model: CostModel
    budget_bits: float | None
    budget_bits_reached: float
    bits: float
    layers: tuple[LayerPlan, ...]
    placement: Placement = "runtime"
    budget: dict[str, float] = field(default_factory=dict)
    predicted_ms: float | None = None

    @property
    def quantized(self) -> dict[str, str]:
        """Layer name to format of every layer that is not in float."""
        return {layer.name: layer.format for layer in self.layers if layer.format != FLOAT}


def check_bits(bits: float, floor: float = 8.0, *, strict: bool = False) -> str | None:
    """Check a bits budget before anything is converted.

    Args:
        bits: Effective bits asked for.
        floor: Lowest bits that the formats can reach.
        strict: Refuse bits below the floor instead of saturating.

    Returns:
        A warning for bits below the floor, or None.

    Raises:
        BudgetError: ``bits`` is outside (0, 16], or below the floor with ``strict``.
    """
    if not 0 < bits <= FLOAT_BITS:
        raise BudgetError(f"--bits {bits:g} is outside (0, {FLOAT_BITS:g}]. Choose {floor:g} to {FLOAT_BITS:g}.")
    if bits >= floor:
        return None
    message = f"--bits {bits:g} is below the floor of {floor:g} bits that these formats reach"
    if strict:
        raise BudgetError(
            f"{message}. Choose {floor:g} to {FLOAT_BITS:g}, or leave out --strict to go as low as it goes."
        )
    return f"{message}; every quantizable layer is quantized."


def make_plan(
    model: PreparedModel,
    choice: Mapping[str, str],
    sizes: Mapping[str, float],
    *,
    budget_bits: float | None,
    cost_model: CostModel = "weights",
    scores: Mapping[str, Mapping[str, float]] | None = None,
    why: Why = "searched",
    data_fingerprint: str | None = None,
    latency: LatencyModel | None = None,
    budget: Mapping[str, float] | None = None,
) -> PrecisionPlan:
    """Write down a choice of formats as a plan, with the bits it reaches.

    Args:
        model: Prepared model.
        choice: Layer name to format; layers that are missing stay in float.
        sizes: Layer sizes in the cost model's unit.
        budget_bits: Bits asked for.
        cost_model: What ``sizes`` count.
        scores: Layer name to format to score, where layers were scored.
        why: Who chose.
        data_fingerprint: SHA-256 of the scored images.
        latency: Prediction of the latency, for cost model ``latency``.
        budget: Budgets of accuracy and latency.

    Raises:
        PlanError: ``choice`` names a layer that the model does not have.
    """
    names = {layer.name for layer in model.quantizable}
    if unknown := sorted(set(choice) - names):
        raise PlanError(f"The plan names layers that '{model.source}' does not have: {', '.join(unknown[:5])}.")
    layers = []
    for layer in model.quantizable:
        chosen = choice.get(layer.name, FLOAT)
        score = 0.0 if chosen == FLOAT else scores[layer.name][chosen] if scores else None
        cost = cost_in_format(sizes[layer.name], chosen)
        if latency and cost_model == "latency":
            cost = latency.layers_ms[layer.name][chosen]
        layers.append(LayerPlan(layer.name, chosen, score, cost, why))
    weights = {layer.name: float(layer.numel) for layer in model.quantizable}
    return PrecisionPlan(
        schema="ultra-mq/plan/1",
        model=model.source,
        model_fingerprint=model.fingerprint,
        data_fingerprint=data_fingerprint,
        formats=tuple(
            sorted(
                {option for by_format in (scores or {}).values() for option in by_format}
                or set(choice.values()) - {FLOAT}
            )
        ),
        cost_model=cost_model,
        budget_bits=budget_bits,
        budget_bits_reached=average_bits(choice, sizes),
        bits=average_bits(choice, weights),
        layers=(*layers, *(LayerPlan(layer.name, FLOAT, None, 0.0, "kept") for layer in model.kept)),
        budget=dict(budget or {}),
        predicted_ms=latency.predict(choice) if latency else None,
    )


def uniform_plan(model: PreparedModel, format_name: str) -> PrecisionPlan:
    """The plan that gives every quantizable layer the same format, if there are kernels of the format for it."""
    sizes = {layer.name: float(layer.numel) for layer in model.quantizable}
    smallest = FORMATS[format_name].min_channels
    choice = {layer.name: format_name for layer in model.quantizable if layer.channels >= smallest}
    return make_plan(model, choice, sizes, budget_bits=FORMATS[format_name].bits, why="user")


def save_plan(plan: PrecisionPlan, path: Path) -> None:
    """Write a plan as YAML, atomically."""
    document = asdict(plan)
    document |= {key: list(document[key]) for key in ("formats", "layers")}  # YAML has no tuples
    header = "# Precision plan of ultra-mq. Edit a layer's format and apply it again with: ultra-mq apply plan.yaml\n"
    write_text(path, header + yaml.safe_dump(document, sort_keys=False, width=120))


def load_plan(path: str | Path) -> PrecisionPlan:
    """Read a plan file.

    Args:
        path: YAML file that ``save_plan`` wrote, edited or not.

    Raises:
        PlanError: The file is missing, is not YAML, or does not fit the schema.
    """
    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise PlanError(f"Plan '{path}' cannot be read: {error}. Pass the plan.yaml of a run folder.") from error
    plan: PrecisionPlan = validate(TypeAdapter(PrecisionPlan), document, f"plan '{path}'", PlanError)
    known = set(FORMATS)
    for layer in plan.layers:
        if layer.format not in known:
            raise PlanError(
                f"Plan '{path}' gives layer '{layer.name}' the format '{layer.format}', which does not exist. "
                f"Known formats: {', '.join(sorted(known))}."
            )
    return plan


def check_plan(plan: PrecisionPlan, model: PreparedModel) -> None:
    """Refuse a plan that was made for other weights.

    Raises:
        PlanError: The fingerprints differ.
    """
    if plan.model_fingerprint != model.fingerprint:
        raise PlanError(
            f"The plan was made for '{plan.model}' and '{model.source}' has other weights. "
            f"Apply it to the weights it was made for, or make a new plan."
        )
