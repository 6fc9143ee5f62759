# SPDX-License-Identifier: AGPL-3.0-or-later
"""The precisions a layer can have, as ModelOpt's quantizers and our plans name them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FLOAT = "fp16"
"""What a layer is that a plan leaves alone: FP16 in the engine, counted with 16 bits."""


@dataclass(frozen=True)
class Format:
    """A precision for the weights and the input of a layer.

    Attributes:
        name: Name in plans and reports.
        bits: Bits a weight, as ModelOpt's effective bits count them.
        weight: ModelOpt attributes of the weight quantizer; per output channel.
        activation: ModelOpt attributes of the input quantizer; per tensor, symmetric, as TensorRT wants it.
        clips: Whether a smaller range makes the steps finer. Those of a floating-point format are relative, so that
            clipping gains nothing.
        executed: TensorRT's name of the type that a layer in this format runs in.
        min_channels: Fewest channels of a layer, in and out, that kernels of the format are made for. ModelOpt's ONNX
            path leaves convolutions of up to 16 channels out of FP8, depthwise ones among them.
    """

    name: str
    bits: float
    weight: dict[str, Any] = field(default_factory=dict, hash=False)
    activation: dict[str, Any] = field(default_factory=dict, hash=False)
    clips: bool = True
    executed: str = ""
    min_channels: int = 1

    def quantizer_config(self, layer: str = "*", amax: float | None = None) -> list[dict[str, Any]]:
        """ModelOpt quantizer entries that give a layer (or all of them) this format.

        Args:
            layer: Module path, or ``*``.
            amax: Range of the layer's input where it is known; ModelOpt then calibrates the weights alone.
        """
        prefix = "*" if layer == "*" else f"{layer}."
        known = {} if amax is None else {"constant_amax": amax}
        return [
            {"quantizer_name": f"{prefix}weight_quantizer", "cfg": dict(self.weight), "enable": True},
            {"quantizer_name": f"{prefix}input_quantizer", "cfg": {**self.activation, **known}, "enable": True},
        ]

    def join_config(self, quantizer: str, amax: float) -> dict[str, Any]:
        """ModelOpt quantizer entry that gives one operand of a join this format."""
        return {"quantizer_name": quantizer, "cfg": {**self.activation, "constant_amax": amax}, "enable": True}


def quantize_config(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """ModelOpt configuration that enables just these quantizers."""
    return {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *entries], "algorithm": "max"}


FormatName = Literal["int8", "fp8"]
"""Formats that a user can choose from, beside float."""

E4M3 = (4, 3)
"""ModelOpt's number of bits of FP8: four of exponent, three of mantissa."""

FORMATS = {
    "int8": Format(
        "int8",
        8,
        weight={"num_bits": 8, "axis": 0},
        activation={"num_bits": 8, "axis": None},
        executed="Int8",
    ),
    # One scale a tensor for the weights too: ModelOpt's exporter knows no other for FP8.
    "fp8": Format(
        "fp8",
        8,
        weight={"num_bits": E4M3, "axis": None},
        activation={"num_bits": E4M3, "axis": None},
        clips=False,
        executed="FP8",
        min_channels=17,
    ),
    FLOAT: Format(FLOAT, 16, executed="Half"),
}
"""Known formats by name."""
