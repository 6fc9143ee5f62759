# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much each layer's quantization hurts, measured: one layer at a time is quantized, and the outputs compared.

The gradient score is an estimate to second order around the float model; here the quantized layer really runs, with the
Q/DQ that it brings to the joins before it. Because only what follows the layer has to run again, a layer costs half a
forward pass on average.

What is compared is what a user can see: on the anchors that the float model is surest of, how far the class logits and
the boxes move. Ranked by it, layers stand in an order much closer to the agreement that is really lost than by squared
changes of all outputs, which a few large ones dominate (docs/results/sensitivity.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ultra_mq.core import progress
from ultra_mq.plan.scores import Sensitivity, check_scores
from ultra_mq.prepare import (
    ANCHOR_EXTRAS,
    Batches,
    Placement,
    PreparedModel,
    gather_inputs,
    place_joins,
    uniform_formats,
)
from ultra_mq.quantization import Calibration, apply_formats

if TYPE_CHECKING:
    import torch
    from torch import nn

ANCHORS = 64
"""Surest anchors of an image that are compared; detections come from these."""

MASKS = 16
"""Surest anchors of an image whose masks are compared; a mask has as many values as an image has anchors."""

LOGIT_LIMIT = 9.21
"""Probability of 0.0001: below it no detection is reported, so that changes there cannot be seen."""

BOX_WEIGHT = 2.0
"""Weight of a change of IoU against one of a logit."""


def measure_perturbation(
    model: PreparedModel,
    calibration: Calibration,
    scoring: Batches,
    formats: Sequence[str] = ("int8",),
    placement: Placement = "runtime",
) -> Sensitivity:
    """Score every quantizable layer in every format by the change of the outputs that it causes alone.

    The score is the length of the mean changes of logits and boxes. A sum of lengths is never less than what the layers
    do together (triangle inequality); summed squares follow independent errors more closely, and made worse plans
    where both were measured, because a few layers then outweigh all others (docs/results/sensitivity.md).

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

    changes: dict[str, dict[str, torch.Tensor]] = {layer.name: {} for layer in model.quantizable}
    with progress("Scoring sensitivity", len(formats) * len(scoring)) as advance, torch.no_grad():
        for option in formats:
            able = uniform_formats(model, option)
            network: Any = apply_formats(model, able, calibration, placement=placement)
            quantizers = {name: child for name, child in network.named_modules() if _is_quantizer(name)}
            for quantizer in quantizers.values():
                quantizer.disable()
            brought = {layer: _quantizers_of(layer, option, model.flow, placement) for layer in able}
            for batch in scoring:
                inputs, outputs, reference = _run_all(network, batch["img"])
                for layer, names in brought.items():
                    first = min(int(name.split(".")[1]) for name in names)
                    for name in names:
                        quantizers[name].enable()
                    changed = _run_from(network, first, inputs[first], outputs[:first])
                    for name in names:
                        quantizers[name].disable()
                    found = visible_changes(changed, reference)
                    changes[layer][option] = changes[layer].get(option, 0.0) + found
                advance(1)
    images = len(scoring.indices)
    scores = {
        layer: {option: float((change / images).norm()) for option, change in by_format.items()}
        for layer, by_format in changes.items()
    }
    check_scores(
        scores,
        f"Sensitivity scores of '{model.source}' are all zero or not finite: quantizing its layers changes "
        f"nothing, or breaks it. Check the weights.",
    )
    return Sensitivity(loss="outputs", images=images, scores=scores, method="perturb")


def visible_changes(output: Any, reference: Any) -> torch.Tensor:
    """How far outputs move that a user can see, summed over the images of a batch.

    Args:
        output: What the model with one quantized layer returns in eval mode.
        reference: What the float model returns for the same images.

    Returns:
        Shape (K,), float32. Sums over images of mean changes over each image's surest anchors: of the logit that
        changes most (in logits), of boxes and, for heads that have them, of masks as the IoU that is lost times
        ``BOX_WEIGHT``, of keypoints and angles in units of their own spread; of a classifier's log-probabilities alone.
    """
    import torch

    raw, base = output[1], reference[1]
    if not isinstance(raw, dict):
        logits, wanted = (value.log_softmax(1).clamp(min=-LOGIT_LIMIT) for value in (raw, base))
        return torch.stack([(logits - wanted).abs().amax(1).sum()])
    surest = base["scores"].amax(1).topk(min(ANCHORS, base["scores"].shape[2]), dim=1).indices

    def pick(values: torch.Tensor) -> torch.Tensor:
        return values.gather(2, surest[:, None].expand(-1, values.shape[1], -1))

    logits, wanted = (pick(side["scores"]).clamp(-LOGIT_LIMIT, LOGIT_LIMIT) for side in (raw, base))
    terms = [(logits - wanted).abs().amax(1)]
    moved, still = (_expected_sides(pick(side["boxes"])) for side in (raw, base))
    terms.append(BOX_WEIGHT * (1 - _overlap(moved, still)))
    if "proto" in base:
        terms.append(BOX_WEIGHT * (1 - _mask_overlap(raw, base, surest)))
    extra = [name for name in ANCHOR_EXTRAS if name in raw and name != "mask_coefficient"]
    terms += [(pick(raw[name]) - pick(base[name])).abs().mean(1) / base[name].std() for name in extra]
    return torch.stack([term.mean(1).sum() for term in terms])


def _expected_sides(boxes: torch.Tensor) -> torch.Tensor:
    """Distances from the anchor to the four sides in strides, shape (B, 4, N), expected ones of distributions."""
    import torch

    if boxes.shape[1] == 4:
        return boxes.clamp(min=0)
    bins = boxes.view(len(boxes), 4, -1, boxes.shape[2]).softmax(2)
    return torch.einsum("bsrn,r->bsn", bins, torch.arange(bins.shape[2]).to(bins))


def _overlap(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """IoU of boxes around the same anchors, shape (B, N)."""
    inner = _area(one.minimum(other))
    return inner / (_area(one) + _area(other) - inner).clamp(min=1e-9)


def _mask_overlap(raw: Any, base: Any, surest: torch.Tensor) -> torch.Tensor:
    """IoU of the masks of each image's surest anchors, soft ones since they have no border yet, shape (B, MASKS).

    A mask is coefficients times prototypes, so layers that only make prototypes are seen too.
    """
    import torch

    chosen = surest[:, None, :MASKS]

    def masks(side: Any) -> torch.Tensor:
        channels = side["mask_coefficient"].shape[1]
        picked = side["mask_coefficient"].gather(2, chosen.expand(-1, channels, -1))
        return torch.einsum("bcn,bchw->bnhw", picked, side["proto"]).sigmoid().flatten(2)

    one, other = masks(raw), masks(base)
    return one.minimum(other).sum(2) / one.maximum(other).sum(2).clamp(min=1e-9)


def _area(sides: torch.Tensor) -> torch.Tensor:
    return (sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3])


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
        value = gather_inputs(module, value, outputs)
        inputs.append(value)
        value = module(value)
        outputs.append(value)
    return inputs, outputs, value


def _run_from(network: Any, first: int, value: Any, outputs: list[Any]) -> Any:
    """Output of the network from a top-level module on, given its input and what the modules before it made."""
    outputs = list(outputs)
    for number, module in enumerate(network.model[first:]):
        value = module(gather_inputs(module, value, outputs) if number else value)
        outputs.append(value)
    return value
