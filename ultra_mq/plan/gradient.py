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
from typing import TYPE_CHECKING, Any

from ultra_mq.core import FORMATS, progress, quantize_config, quiet
from ultra_mq.plan.scores import LossName, Sensitivity, check_scores, visible_outputs
from ultra_mq.prepare import Batches, PreparedModel, uniform_formats
from ultra_mq.quantization import Calibration

if TYPE_CHECKING:
    import torch
    from torch import nn

LOSS_SCALE = 1e4
"""Factor on the loss: raw scores of a trained detector are tiny, and a scale changes no ranking."""


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
    able = {name: uniform_formats(model, name) for name in formats}
    scores = {
        layer: {name: score for name, score in by_format.items() if layer in able[name]}
        for layer, by_format in _read_scores(state, [layer.name for layer in model.quantizable], formats).items()
    }
    check_scores(
        scores,
        f"Sensitivity scores of '{model.source}' are all zero or not finite; the loss has no usable gradient. "
        f"Check the weights and the labels, or score without labels (loss=outputs).",
    )
    return Sensitivity(loss=loss, images=len(scoring.indices), scores=scores)


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
            layer.input_quantizer.amax = torch.tensor(calibration.amax_for(name, chosen), device=layer.weight.device)
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
