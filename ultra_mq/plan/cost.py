# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a layer costs in a format, under a cost model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from ultra_mq.core import FLOAT, FORMATS
from ultra_mq.prepare import ImageSize, PreparedModel, channels_of, height_width

if TYPE_CHECKING:
    import torch
    from torch import nn

CostModel = Literal["weights", "macs", "latency"]
BITS_MODELS: tuple[CostModel, ...] = ("weights", "macs")
"""Cost models that count bits; latency is measured, see ``latency.py``."""


def layer_sizes(model: PreparedModel, cost_model: CostModel, imgsz: ImageSize) -> dict[str, float]:
    """Size of every quantizable layer, in the unit that the cost model counts.

    Args:
        model: Prepared model.
        cost_model: ``macs`` counts multiply-accumulates of one image, which is where the time goes on convolutions;
            otherwise weight elements are counted, as ModelOpt's effective bits do.
        imgsz: Image size in pixels, for ``macs``.

    Returns:
        Layer name to number of weights or of MACs.
    """
    if cost_model != "macs":
        return weight_sizes(model)
    macs = count_macs(model.module, imgsz)
    return {layer.name: macs[layer.name] for layer in model.quantizable}


def weight_sizes(model: PreparedModel) -> dict[str, float]:
    """Number of weights of every quantizable layer."""
    return {layer.name: float(layer.numel) for layer in model.quantizable}


def cost_in_format(size: float, format_name: str) -> float:
    """Cost of a layer: its size times the bits of the format."""
    return size * FORMATS[format_name].bits


def average_bits(choice: Mapping[str, str], sizes: Mapping[str, float]) -> float:
    """Bits of a choice of formats, averaged over sizes; layers that are missing in it are float."""
    total = sum(sizes.values())
    return sum(cost_in_format(size, choice.get(name, FLOAT)) for name, size in sizes.items()) / total


def count_macs(module: nn.Module, imgsz: ImageSize) -> dict[str, float]:
    """Multiply-accumulates of every convolution and linear layer for one image.

    A convolution does ``weight.numel() / out_channels`` MACs for every output element.

    Args:
        module: Ultralytics module.
        imgsz: Image size in pixels.
    """
    layers: dict[str, Any] = dict(module.named_modules())
    return {
        name: elements * layers[name].weight.numel() / layers[name].weight.shape[0]
        for name, elements in count_outputs(module, imgsz).items()
    }


def count_outputs(module: nn.Module, imgsz: ImageSize) -> dict[str, float]:
    """Elements that every convolution and linear layer writes for one image.

    Args:
        module: Ultralytics module.
        imgsz: Image size in pixels.
    """
    import torch
    from torch import nn

    written: dict[str, float] = {}
    handles = []

    def count(name: str) -> Any:
        def hook(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
            written[name] = written.get(name, 0.0) + float(output.numel())

        return hook

    for name, child in module.named_modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)):
            handles.append(child.register_forward_hook(count(name)))
    parameter = next(module.parameters())
    try:
        with torch.no_grad():
            module(torch.zeros(1, channels_of(module), *height_width(imgsz), device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return written
