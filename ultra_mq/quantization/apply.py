# SPDX-License-Identifier: AGPL-3.0-or-later
"""Formats of layers carried out on the torch model: quantizers placed, calibrated, trainable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ultra_mq.core import FLOAT, FORMATS, ModelError, atomic_path, quantize_config, quiet
from ultra_mq.prepare import Batches, Placement, PreparedModel, place_joins
from ultra_mq.quantization.ranges import Calibration
from ultra_mq.quantization.record import QuantizationRecord

if TYPE_CHECKING:
    import torch
    from torch import nn


BIASES = "biases.npz"


def apply_formats(
    model: PreparedModel,
    formats: Mapping[str, str],
    calibration: Calibration,
    correction: Batches | None = None,
    placement: Placement = "runtime",
    *,
    reduce_range: bool = False,
) -> nn.Module:
    """Give every layer its format, and the joins between them.

    Args:
        model: Prepared model; it is copied, not changed.
        formats: Layer name to format; layers that are missing stay in float.
        calibration: Ranges of its layers and joins, taken for the same placement.
        correction: Images for bias correction, or None to leave the biases alone.
        placement: ``runtime`` quantizes joins too; otherwise only layers.
        reduce_range: Let INT8 weights use half of their range, 7 bits: a CPU that sums products of 8 bits in 16 cannot
            overflow then (255 x 64 x 2 < 2^15; ONNX Runtime calls it by the same name).

    Returns:
        The module with ModelOpt's fake quantizers, in eval mode, with gradients on: it can be evaluated, trained
        further, saved by ``YOLO.save`` and exported.
    """
    with quiet():
        import modelopt.torch.quantization as mtq
        import torch

        from ultra_mq.quantization.blocks import register

        register()
        formats = {layer: name for layer, name in formats.items() if name != FLOAT}
        module = copy.deepcopy(model.module)
        blocks: tuple[str, ...] = ()
        entries = [
            entry
            for layer, name in formats.items()
            for entry in FORMATS[name].quantizer_config(layer, calibration.amax_for(layer, name))
        ]
        if placement == "runtime":
            joins = place_joins(model.flow, formats)
            blocks = _announce_joins(module, joins)
            entries += [
                FORMATS[name].join_config(join, calibration.amax_for(join, name)) for join, name in joins.items()
            ]
        module.quantization = QuantizationRecord(formats, placement, blocks)  # type: ignore[assignment]
        with torch.no_grad():
            # The input ranges are known, so ModelOpt calibrates the weights alone and needs no images.
            module = mtq.quantize(module, quantize_config(entries))
            # ModelOpt leaves ranges that it is given on the CPU.
            module.to(next(model.module.parameters()).device)
            if reduce_range:
                _widen_weight_ranges(module)
            if correction is not None:
                correct_biases(module, model.module, formats, correction)
    return cast("nn.Module", module)


def _widen_weight_ranges(module: nn.Module) -> None:
    """Twice the range of every INT8 weight, so that its values fill half of the steps."""
    for name, quantizer in module.named_modules():
        if name.endswith("weight_quantizer") and quantizer.is_enabled and quantizer.num_bits == 8:
            quantizer.amax = 2 * quantizer.amax


def _announce_joins(module: nn.Module, joins: Iterable[str]) -> tuple[str, ...]:
    """Tell every block which quantizers to make; they exist only once ModelOpt has converted it.

    Returns:
        Blocks of a user's own, by module and name of their classes.
    """
    from ultra_mq.quantization.blocks import register_block

    own: dict[str, None] = {}
    for join in joins:
        path, _, quantizer = join.rpartition(".")
        block = module.get_submodule(path)
        if quantizer == "input_quantizer":
            continue
        kind = type(block)
        if not kind.__module__.startswith(("ultralytics.", "torch.")):
            own[f"{kind.__module__}:{kind.__qualname__}"] = None
        if not register_block(kind):
            raise ModelError(
                f"The block '{path}' is a {kind.__qualname__}, whose forward pass Ultralytics replaces when it fuses, "
                f"so its {quantizer.partition('_')[0]} cannot be quantized. Use placement=torch, for layers alone."
            )
        block.quantized_joins = (*getattr(block, "quantized_joins", ()), quantizer)  # type: ignore[assignment]
    return tuple(own)


def correct_biases(
    module: nn.Module, reference: nn.Module, layers: Iterable[str], batches: Batches
) -> dict[str, torch.Tensor]:
    """Remove the mean shift that quantization gives each output channel, by changing the biases.

    Empirical bias correction (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", section 4.2), layer by layer in the order of the forward pass: each layer's quantized output is
    compared with what its float weights make of the same input, so that a correction never counts twice. It costs
    nothing at run time.

    Args:
        module: Quantized module, changed in place.
        reference: Float module with the same layers.
        layers: Names of the layers that ``module`` has quantized.
        batches: Images; all of them go through the network as one batch.

    Returns:
        Layer to its new bias.
    """
    import torch

    floats = dict(reference.named_modules())
    children: dict[str, Any] = dict(module.named_modules())
    images = torch.cat([batch["img"] for batch in batches])

    def correct(name: str) -> Callable[..., torch.Tensor]:
        def hook(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            # Channels come second in the output of a convolution, and last in that of a linear layer.
            channel = output.ndim - 1 if isinstance(layer, torch.nn.Linear) else 1
            shift = (output - floats[name](inputs[0])).mean([d for d in range(output.ndim) if d != channel])
            layer.bias -= shift
            return torch.sub(output, shift.view([-1 if d == channel else 1 for d in range(output.ndim)]))

        return hook

    corrected = [name for name in layers if children[name].bias is not None]
    handles = [children[name].register_forward_hook(correct(name)) for name in corrected]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: children[name].bias.detach().clone() for name in corrected}


def save_biases(biases: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write corrected biases into a folder."""
    with atomic_path(folder / BIASES) as temporary:
        np.savez(temporary, **{name: bias.cpu().numpy() for name, bias in biases.items()})  # type: ignore[arg-type]


def load_biases(module: nn.Module, folder: Path) -> None:
    """Give a module the biases that ``save_biases`` wrote."""
    import torch

    with np.load(folder / BIASES) as found, torch.no_grad():
        for name in found:
            bias: Any = module.get_submodule(name).bias
            bias.copy_(torch.from_numpy(found[name]))


def save_checkpoint(module: nn.Module, model: PreparedModel, path: Path) -> None:
    """Save a quantized module as an Ultralytics checkpoint: ``YOLO(path)`` loads it with its quantizers.

    Args:
        module: Quantized module.
        model: Prepared model that it was made from.
        path: ``.pt`` file to write.
    """
    from ultralytics import YOLO

    with quiet(), atomic_path(path) as temporary:
        yolo = YOLO(model.source)
        yolo.model = module
        yolo.save(temporary)
