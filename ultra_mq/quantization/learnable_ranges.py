# SPDX-License-Identifier: AGPL-3.0-or-later
"""Activation ranges of a quantized network as parameters that have gradients, while it is recovered."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextlib.contextmanager
def learnable_ranges(module: nn.Module) -> Iterator[list[torch.nn.Parameter]]:
    """Let the ranges of INT8 activations be learnt: one factor's logarithm for all that have a range in common."""
    import torch

    logs: dict[float, torch.nn.Parameter] = {}
    changed = []
    for name, quantizer in module.named_modules():
        leaf = name.rpartition(".")[2]
        if "_quantizer" not in leaf or leaf == "weight_quantizer" or not getattr(quantizer, "is_enabled", False):
            continue
        if quantizer.num_bits != 8 or quantizer.amax is None or quantizer.amax.numel() != 1:
            continue
        amax = quantizer.amax.detach().float().reshape(())
        log = logs.setdefault(float(amax), torch.nn.Parameter(torch.zeros_like(amax)))
        quantizer.forward = _fake_quantize(amax, log)
        changed.append((quantizer, log))
    try:
        yield list(logs.values())
    finally:
        for quantizer, log in changed:
            del quantizer.forward
            quantizer.amax = quantizer.amax * log.detach().exp()


def _fake_quantize(amax: torch.Tensor, log: torch.nn.Parameter) -> Callable[[torch.Tensor], torch.Tensor]:
    """Symmetric INT8 quantization whose range has a gradient."""

    def forward(values: torch.Tensor) -> torch.Tensor:
        import torch

        # Sums are written as products here: a block whose joins are quantized would take them for its own additions.
        scale = amax * log.exp() / 127
        # The gradient of a range sums over all elements; without this it would dwarf the others (Esser et al., 2.2).
        factor = torch.full_like(scale, 1 / math.sqrt(values.numel() * 127))
        damped = torch.lerp(scale.detach(), scale, factor)
        # ModelOpt, ONNX and TensorRT take -128 too.
        clipped = torch.clamp(values, -128 * damped, 127 * damped)
        # No division in the graph: its gradient overflows.
        off = (clipped / scale).detach()
        return torch.addcmul(clipped, off.round() - off, damped)

    return forward
