# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much each layer's quantization hurts, measured: one layer at a time is quantized, and the outputs compared.

The gradient score is an estimate to second order around the float model; here the quantized layer really runs, with the
Q/DQ that it brings to the joins before it. Because only what follows the layer has to run again, a layer costs half a
forward pass on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ultra_mq.calibrate import Calibration
from ultra_mq.console import progress
from ultra_mq.data import Batches
from ultra_mq.errors import ModelError
from ultra_mq.flow import trace_flow
from ultra_mq.model import PreparedModel
from ultra_mq.placement import Placement, place_joins
from ultra_mq.plan import uniform_plan
from ultra_mq.quantization import apply_plan
from ultra_mq.sensitivity import Sensitivity, visible_outputs

if TYPE_CHECKING:
    from torch import nn


def measure_perturbation(
    model: PreparedModel,
    calibration: Calibration,
    scoring: Batches,
    formats: Sequence[str] = ("int8",),
    placement: Placement = "runtime",
) -> Sensitivity:
    """Score every quantizable layer in every format by the squared change of the outputs that it causes alone.

    Args:
        model: Prepared model; it is copied, not changed.
        calibration: Ranges of its layers and joins.
        scoring: Images; no labels are needed.
        formats: Formats to score.
        placement: Whether a layer brings Q/DQ to the joins before it.

    Raises:
        ModelError: The scores are all zero or not finite, so no plan could be made from them.
    """
    import torch

    scores: dict[str, dict[str, float]] = {layer.name: {} for layer in model.quantizable}
    flow = trace_flow(model.module)
    with progress("Scoring sensitivity", len(formats) * len(scoring)) as advance, torch.no_grad():
        for option in formats:
            plan = uniform_plan(model, option)
            network: Any = apply_plan(model, plan, calibration, placement=placement)
            quantizers = {name: child for name, child in network.named_modules() if _is_quantizer(name)}
            for quantizer in quantizers.values():
                quantizer.disable()
            brought = {layer: _quantizers_of(layer, option, flow, placement) for layer in plan.quantized}
            for batch in scoring:
                inputs, outputs, reference = _run_all(network, batch["img"])
                for layer, names in brought.items():
                    first = min(int(name.split(".")[1]) for name in names)
                    for name in names:
                        quantizers[name].enable()
                    changed = _run_from(network, first, inputs[first], outputs[:first])
                    for name in names:
                        quantizers[name].disable()
                    pairs = zip(visible_outputs(changed, reference), visible_outputs(reference, reference), strict=True)
                    change = sum(float((one - other).square().sum()) for one, other in pairs)
                    scores[layer][option] = scores[layer].get(option, 0.0) + change
                advance(1)
            # A format without kernels for a layer is never chosen; its score says what it would cost.
            for by_format in scores.values():
                by_format.setdefault(option, 0.0)
    values = [score for by_format in scores.values() for score in by_format.values()]
    if not any(values) or not all(0 <= value < float("inf") for value in values):
        raise ModelError(
            f"Sensitivity scores of '{model.source}' are all zero or not finite: quantizing its layers changes "
            f"nothing, or breaks it. Check the weights."
        )
    return Sensitivity(loss="outputs", images=len(scoring.indices), scores=scores, method="perturb")


def _is_quantizer(name: str) -> bool:
    return "_quantizer" in name.rpartition(".")[2]


def _quantizers_of(layer: str, option: str, flow: Any, placement: Placement) -> list[str]:
    joins = place_joins(flow, {layer: option}) if placement == "runtime" else ()
    return [f"{layer}.weight_quantizer", f"{layer}.input_quantizer", *joins]


def _run_all(network: nn.Module, images: Any) -> tuple[list[Any], list[Any], Any]:
    """Input and output of every top-level module, and the last output."""
    inputs: list[Any] = []
    outputs: list[Any] = []
    value = images
    for module in network.model:  # type: ignore[union-attr]
        value = _gather(module, value, outputs)
        inputs.append(value)
        value = module(value)
        outputs.append(value)
    return inputs, outputs, value


def _run_from(network: Any, first: int, value: Any, outputs: list[Any]) -> Any:
    """Output of the network from a top-level module on, given its input and what the modules before it made."""
    outputs = list(outputs)
    for number, module in enumerate(network.model[first:]):
        value = module(_gather(module, value, outputs) if number else value)
        outputs.append(value)
    return value


def _gather(module: Any, before: Any, outputs: list[Any]) -> Any:
    """Input of a top-level module, as ``BaseModel._predict_once`` of Ultralytics puts it together."""
    if module.f == -1:
        return before
    if isinstance(module.f, int):
        return outputs[module.f]
    return [before if source == -1 else outputs[source] for source in module.f]
