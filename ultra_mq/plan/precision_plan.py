# SPDX-License-Identifier: AGPL-3.0-or-later
"""A ``PrecisionPlan``: a precision for every layer, as a value and as a file one can read and edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ConfigDict, TypeAdapter

from ultra_mq.core import FLOAT, FORMATS, BudgetError, PlanError, validate, write_text
from ultra_mq.plan.cost import CostModel, average_bits, weight_sizes
from ultra_mq.plan.prices import Prices, weight_prices
from ultra_mq.prepare import Placement, PreparedModel, uniform_formats

Why = Literal["searched", "kept", "dead", "repaired", "user"]
KEPT: tuple[Why, ...] = ("kept", "dead")
"""Layers that no plan may quantize: by rule, or because nothing ever reaches them."""
FLOAT_BITS = FORMATS[FLOAT].bits


@dataclass(frozen=True)
class LayerPlan:
    """What one layer becomes.

    Attributes:
        name: Module path.
        format: Format name, ``fp16`` for a layer left in float.
        score: Sensitivity in that format; 0 in float, None where nothing was scored.
        cost: Size times bits in the plan's cost model, or milliseconds for ``latency``; 0 for kept layers, which are
            outside the count; None where it is not known.
        why: ``searched`` by the solver, ``kept`` by rule, ``dead`` where the input is always zero, ``repaired`` after a
            failed build, or set by the ``user``.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    format: str
    score: float | None
    cost: float | None
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
    def by_layer(self) -> dict[str, str]:
        """Layer name to format of every layer."""
        return {layer.name: layer.format for layer in self.layers}

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
    prices: Prices,
    *,
    budget_bits: float | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    why: Why = "searched",
    placement: Placement = "runtime",
) -> PrecisionPlan:
    """Write down a choice of formats as a plan, with the bits it reaches.

    Args:
        model: Prepared model.
        choice: Layer name to format; layers that are missing stay in float.
        prices: What layers cost.
        budget_bits: Bits asked for, where that was the budget.
        scores: Layer name to format to score, where layers were scored.
        why: Who chose.
        placement: Where Q/DQ stand beside the layers.

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
        layers.append(LayerPlan(layer.name, chosen, score, prices.of(layer.name, chosen), why))
    scored = {option for by_format in (scores or {}).values() for option in by_format}
    plan = PrecisionPlan(
        schema="ultra-mq/plan/1",
        model=model.source,
        model_fingerprint=model.fingerprint,
        data_fingerprint=None,
        formats=tuple(sorted((scored or set(choice.values())) - {FLOAT})),
        cost_model=prices.cost_model,
        budget_bits=budget_bits,
        budget_bits_reached=0.0,
        bits=0.0,
        layers=(
            *layers,
            *(
                LayerPlan(layer.name, FLOAT, None, 0.0, "dead" if layer.name in model.dead else "kept")
                for layer in model.kept
            ),
        ),
        placement=placement,
    )
    return with_figures(plan, plan.layers, model, prices)


def uniform_plan(model: PreparedModel, format_name: str, placement: Placement = "runtime") -> PrecisionPlan:
    """The plan that gives every quantizable layer the same format, if there are kernels of the format for it."""
    choice = uniform_formats(model, format_name)
    bits = FORMATS[format_name].bits
    return make_plan(model, choice, weight_prices(model), budget_bits=bits, why="user", placement=placement)


def with_figures(
    plan: PrecisionPlan, layers: tuple[LayerPlan, ...], model: PreparedModel, prices: Prices
) -> PrecisionPlan:
    """The plan with these layers, and the bits and milliseconds of just these."""
    choice = {layer.name: layer.format for layer in layers if layer.why not in KEPT}
    return replace(
        plan,
        layers=layers,
        budget_bits_reached=prices.bits(choice),
        bits=average_bits(choice, weight_sizes(model)),
        predicted_ms=prices.predict_ms(choice),
    )


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
    for name, count in Counter(layer.name for layer in plan.layers).items():
        if count > 1:
            raise PlanError(f"Plan '{path}' names layer '{name}' {count} times. Keep one of them.")
    for layer in plan.layers:
        if layer.format not in FORMATS:
            raise PlanError(
                f"Plan '{path}' gives layer '{layer.name}' the format '{layer.format}', which does not exist. "
                f"Known formats: {', '.join(sorted(FORMATS))}."
            )
    return plan
