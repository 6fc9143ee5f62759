# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a layer costs in a format, under a cost model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ultra_mq.formats import FORMATS
from ultra_mq.model import PreparedModel

if TYPE_CHECKING:
    import torch
    from torch import nn

CostModel = Literal["weights", "macs"]


def layer_sizes(model: PreparedModel, cost_model: CostModel, imgsz: int) -> dict[str, float]:
    """Size of every quantizable layer, in the unit that the cost model counts.

    Args:
        model: Prepared model.
        cost_model: ``weights`` counts weight elements, as ModelOpt's effective bits do; ``macs`` counts
            multiply-accumulates of one image, which is where the time goes on convolutions.
        imgsz: Image size in pixels, for ``macs``.

    Returns:
        Layer name to number of weights or of MACs.
    """
    if cost_model == "weights":
        return {layer.name: float(layer.numel) for layer in model.quantizable}
    macs = count_macs(model.module, imgsz)
    return {layer.name: macs[layer.name] for layer in model.quantizable}


def cost_in_format(size: float, format_name: str) -> float:
    """Cost of a layer: its size times the bits of the format."""
    return size * FORMATS[format_name].bits


def count_macs(module: nn.Module, imgsz: int) -> dict[str, float]:
    """Multiply-accumulates of every convolution and linear layer for one square image.

    A convolution does ``weight.numel() / out_channels`` MACs for every output element.

    Args:
        module: Ultralytics module.
        imgsz: Image size in pixels.
    """
    import torch
    from torch import nn

    macs: dict[str, float] = {}
    handles = []

    def count(name: str) -> Any:
        def hook(layer: nn.Conv2d | nn.Linear, _: Any, output: torch.Tensor) -> None:
            per_element = layer.weight.numel() / layer.weight.shape[0]
            macs[name] = macs.get(name, 0.0) + float(output.numel() * per_element)

        return hook

    for name, child in module.named_modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)):
            handles.append(child.register_forward_hook(count(name)))
    parameter = next(module.parameters())
    channels = getattr(module, "yaml", {}).get("channels", 3)
    try:
        with torch.no_grad():
            module(torch.zeros(1, channels, imgsz, imgsz, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return macs
