# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where Q/DQ stand beside the layers of a plan: on residual adds, concats, pools and upsampling.

A runtime keeps a tensor in INT8 only if everything between two quantized convolutions is quantized too, in one
scale where the operation merely copies. The rules are those of NVIDIA's guide to explicit quantization (TensorRT
developer guide, "Q/DQ placement recommendations") and of its yolo_deepstream QAT example: both operands of a residual
add, all operands of a concat in one scale that their producers share, pools and nearest upsampling in the scale of
their input. They are applied to the flow of tensors, so a new block needs no new rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ultra_mq.prepare.components import connected
from ultra_mq.prepare.flow import Op

Placement = Literal["runtime", "torch", "onnx"]
"""``runtime``: layers and joins; ``torch``: layers alone, as ModelOpt's torch path; ``onnx``: ModelOpt's ONNX path."""

JOINS = ("cat", "add", "pool", "resize")
COPIES = ("view", "cat", "pool", "resize")
"""Kinds whose output holds values of their inputs, unchanged: they keep a scale."""


@dataclass(frozen=True)
class Site:
    """One place where a quantizer can stand: an input of a layer, or an operand of a join.

    Attributes:
        name: The layer for its input quantizer, or the path of the join's own quantizer.
        tensor: Number of the tensor that is quantized there.
    """

    name: str
    tensor: int


def sites_of(op: Op) -> tuple[Site, ...]:
    """The sites of an operation.

    A concat has one quantizer for all operands, since they share a scale; an add has one for each. A pool that is a
    module of its own has ModelOpt's ``input_quantizer``, one that a block calls as a function has the block's.
    """
    if op.kind == "conv":
        return (Site(op.module, op.inputs[0]),)
    if op.kind == "cat":
        return tuple(Site(f"{op.module}.cat{op.index}_quantizer", tensor) for tensor in op.inputs)
    if op.kind == "add":
        return tuple(
            Site(f"{op.module}.add{op.index}_quantizer{operand}", tensor) for operand, tensor in enumerate(op.inputs)
        )
    if op.kind == "resize":
        return (Site(f"{op.module}.resize{op.index}_quantizer", op.inputs[0]),)
    if op.kind == "pool":
        name = "input_quantizer" if op.builtin else f"pool{op.index}_quantizer"
        return (Site(f"{op.module}.{name}", op.inputs[0]),)
    return ()


def shared_ranges(flow: tuple[Op, ...], placement: Placement) -> tuple[frozenset[str], ...]:
    """Sites that must have one range, because they quantize the same tensor or copies of it.

    The groups do not depend on a plan, so ranges are measured once for all plans.

    Args:
        flow: Operations of the model.
        placement: ``runtime`` joins what concats, pools and views copy; otherwise every layer stands alone.
    """
    if placement != "runtime":
        return tuple(frozenset({site.name}) for op in flow if op.kind == "conv" for site in sites_of(op))
    bonds: list[tuple[str | int, ...]] = [(*op.inputs, *op.outputs) for op in flow if op.kind in COPIES]
    # A pool that runs three times is one site of three tensors, which binds them too.
    bonds += [(site.name, site.tensor) for op in flow for site in sites_of(op)]
    items = dict.fromkeys(item for bond in bonds for item in bond)
    groups = (frozenset(item for item in group if isinstance(item, str)) for group in connected(items, bonds))
    return tuple(group for group in groups if group)


def place_joins(flow: tuple[Op, ...], quantized: Mapping[str, str]) -> dict[str, str]:
    """Joins that are quantized under a plan.

    A join is quantized where all quantized layers that read its result, through other joins, agree on a format. One
    that feeds only float layers is left alone: a layer that a plan keeps in float takes its Q/DQ with it.

    Args:
        flow: Operations of the model.
        quantized: Layer to format, of the layers that are quantized.

    Returns:
        Name of the join's quantizer to format, in the order of the forward pass.
    """
    wanted: dict[int, set[str]] = {}
    found: list[tuple[str, str]] = []
    for op in reversed(flow):
        formats = set().union(*(wanted.get(tensor, set()) for tensor in op.outputs))
        if op.kind == "conv":
            formats = {quantized[op.module]} if op.module in quantized else set()
        elif op.kind in JOINS and len(formats) == 1:
            (agreed,) = formats
            found += [(site.name, agreed) for site in reversed(sites_of(op))]
        elif op.kind != "view":
            continue
        for tensor in op.inputs:
            wanted.setdefault(tensor, set()).update(formats)
    return dict(reversed(found))
