# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much each layer's quantization hurts, by ModelOpt's ``auto_quantize`` gradient scores.

For every layer and format ModelOpt records ``sum((dL/dy * dy)^2)``: the change ``dy`` that quantizing the layer
makes in its output ``y``, weighted by the gradient of the loss there. It is the second-order Taylor term of the
loss with the Fisher information in place of the Hessian (documentation of ``AutoQuantizeGradientSearcher`` in
NVIDIA ModelOpt 0.47; the same estimate as in "Group Fisher Pruning", Liu et al. 2021, section 3).

One run serves every budget: the scores do not depend on it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ultra_mq.calibrate import Calibration
from ultra_mq.console import progress, quiet
from ultra_mq.data import Batches
from ultra_mq.errors import ModelError
from ultra_mq.formats import FORMATS, quantize_config
from ultra_mq.model import PreparedModel

if TYPE_CHECKING:
    import torch
    from torch import nn

LossName = Literal["labels", "outputs"]
ScoreMethod = Literal["perturb", "gradient"]

LOSS_SCALE = 1e4
"""Factor on the loss: raw scores of a trained detector are tiny, and a scale changes no ranking."""


@dataclass(frozen=True)
class Sensitivity:
    """Scores of every quantizable layer.

    Attributes:
        loss: ``labels`` for the detection loss, ``outputs`` for the change of the model's own outputs.
        images: Number of images that were scored.
        scores: Layer name to format name to score; higher hurts more, and scores of layers add up.
        method: ``gradient`` for ModelOpt's estimate, ``perturb`` for the change that was measured.
    """

    loss: LossName
    images: int
    scores: dict[str, dict[str, float]]
    method: ScoreMethod = "gradient"


def measure_sensitivity(
    model: PreparedModel,
    calibration: Calibration,
    scoring: Batches,
    loss: LossName,
    formats: tuple[str, ...] = ("int8",),
    seed: int = 0,
) -> Sensitivity:
    """Score every quantizable layer in every format.

    Args:
        model: Prepared model; it is copied, not changed.
        calibration: Input ranges of the layers.
        scoring: Images on which the loss is differentiated.
        loss: ``labels`` needs labelled images, ``outputs`` does not.
        formats: Formats to score.
        seed: Seed of the random projections of the label-free loss.

    Raises:
        ModelError: All scores are zero or not finite, so no plan could be made from them.
    """
    module = copy.deepcopy(model.module)
    loss_function = _detection_loss(module) if loss == "labels" else _output_loss(seed)
    kept = [layer.name for layer in model.kept]
    waiting = [layer.name for layer in model.quantizable]
    with progress("Scoring sensitivity", len(scoring)) as advance, quiet():
        import modelopt.torch.quantization as mtq

        def forward_step(network: nn.Module, batch: dict[str, Any]) -> Any:
            # Emptied after the first batch: the quantizers exist only once ModelOpt has converted the network.
            while waiting:
                _set_ranges(network, waiting.pop(), calibration)
            return network(batch["img"])

        def loss_func(output: Any, batch: dict[str, Any]) -> torch.Tensor:
            advance(1)
            return LOSS_SCALE * loss_function(output, batch)

        _, state = mtq.auto_quantize(
            module,
            constraints={"effective_bits": 16.0, "cost": {"excluded_module_name_patterns": kept}},
            quantization_formats=[quantize_config(FORMATS[name].quantizer_config()) for name in formats],
            data_loader=scoring,
            forward_step=forward_step,
            loss_func=loss_func,
            disabled_layers=kept,
            # The input ranges are known, so ModelOpt calibrates the weights alone.
            num_calib_steps=0,
            num_score_steps=len(scoring),
            method="gradient",
        )
    scores = _read_scores(state, [layer.name for layer in model.quantizable], formats)
    check_scores(
        scores,
        f"Sensitivity scores of '{model.source}' are all zero or not finite; the loss has no usable gradient. "
        f"Check the weights and the labels, or score without labels (loss=outputs).",
    )
    return Sensitivity(loss=loss, images=len(scoring.indices), scores=scores)


def check_scores(scores: dict[str, dict[str, float]], message: str) -> None:
    """Refuse scores that no plan could be made from.

    Raises:
        ModelError: They are all zero, or not finite.
    """
    values = [score for by_format in scores.values() for score in by_format.values()]
    if not any(values) or not all(0 <= value < float("inf") for value in values):
        raise ModelError(message)


def _set_ranges(network: nn.Module, name: str, calibration: Calibration) -> None:
    """Give the quantizers of every candidate format the known range of a layer's input.

    ModelOpt keeps a set of quantizers for each candidate and puts the set of the active one into the layer.
    """
    import torch

    layer: Any = network.get_submodule(name)
    candidates = layer.get_hparam("quant_recipe")
    before = candidates.active
    for candidate in candidates.choices:
        candidates.active = candidate
        if layer.input_quantizer.is_enabled:
            bits = layer.input_quantizer.num_bits
            chosen = next(known.name for known in FORMATS.values() if known.activation.get("num_bits") == bits)
            layer.input_quantizer.amax = torch.tensor(calibration.range(name, chosen), device=layer.weight.device)
    candidates.active = before


def _read_scores(state: dict[str, Any], layers: list[str], formats: tuple[str, ...]) -> dict[str, dict[str, float]]:
    by_layer = {stats["module_names"][0]: stats for stats in state["candidate_stats"].values()}
    scores = {}
    for layer in layers:
        by_recipe = dict(zip(map(str, by_layer[layer]["formats"]), by_layer[layer]["scores"], strict=True))
        # ModelOpt names unnamed recipes by position: "CUSTOM_<format>(effective-bits: 8.0)".
        scores[layer] = {
            name: float(next(score for recipe, score in by_recipe.items() if recipe.startswith(f"CUSTOM_{index}(")))
            for index, name in enumerate(formats)
        }
    return scores


def _detection_loss(module: Any) -> Callable[[Any, dict[str, Any]], torch.Tensor]:
    from ultralytics.cfg import get_cfg

    # The criterion reads its gains from the model's args, which a checkpoint holds as a plain dict.
    module.args = get_cfg()
    module.criterion = None

    def loss(output: Any, batch: dict[str, Any]) -> torch.Tensor:
        total: torch.Tensor = module.loss(batch, output)[0].sum()
        return total

    return loss


def _output_loss(seed: int) -> Callable[[Any, dict[str, Any]], torch.Tensor]:
    """Label-free loss: a random projection of what can be seen of the model's own float outputs.

    For random signs ``v``, the expectation of ``(v . J dy)^2`` is ``|J dy|^2``, the squared change of the outputs
    that ``dy`` causes (Hutchinson's estimator).
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def project(value: torch.Tensor) -> torch.Tensor:
        signs = (torch.randint(0, 2, value.shape, generator=generator) * 2 - 1).to(value)
        return (signs * value).sum()

    def loss(output: Any, batch: dict[str, Any]) -> torch.Tensor:
        return torch.stack([project(value) for value in visible_outputs(output)]).sum()

    return loss


def visible_outputs(output: Any) -> list[torch.Tensor]:
    """Outputs in units of what a user sees, so that squared changes of all of them can be added.

    These are class probabilities and, weighted with the anchor's confidence since empty anchors are never seen: box
    distributions, or distances in strides where the head has no distributions, and mask coefficients, keypoints and
    angles in units of their own spread.

    Args:
        output: What the model returns in eval mode; weights and units are taken without gradient.
    """
    raw = output[1]
    if not isinstance(raw, dict):  # a classifier's logits
        return [raw.softmax(1)]
    confidence = raw["scores"].detach().sigmoid().amax(1, keepdim=True)
    boxes = raw["boxes"]
    if boxes.shape[1] > 4:
        boxes = boxes.view(len(boxes), 4, -1, boxes.shape[2]).softmax(2).flatten(1, 2)
    found = [raw["scores"].sigmoid(), boxes * confidence]
    extra = [name for name in ("mask_coefficient", "kpts", "angle") if name in raw]
    found += [raw[name] / raw[name].detach().std() * confidence for name in extra]
    if "proto" in raw:
        # A mask is coefficients times prototypes: both sides count as much, however many pixels there are.
        weight = (confidence.square().sum() * raw["mask_coefficient"].shape[1] / raw["proto"].numel()).sqrt()
        found.append(raw["proto"] / raw["proto"].detach().std() * weight)
    return found
