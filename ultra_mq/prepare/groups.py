# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which layers take one decision, and between which a change of precision costs a pass over a tensor.

Both follow from the recorded flow of tensors, so that they hold for every family of YOLO.
"""

from __future__ import annotations

from collections.abc import Collection

from ultra_mq.prepare.components import connected
from ultra_mq.prepare.flow import Op

MEETING = ("cat", "add")


def find_groups(flow: tuple[Op, ...], layers: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Layers that take one decision, because they share a tensor.

    Two rules: layers that read the same tensor (q, k and v, the branches of a head, the two halves of a CSP block)
    would need it in two precisions if they differed; and layers whose results meet in a residual add or in a concat
    make one tensor together, which is in INT8 only if all of its parts are.

    Args:
        flow: Operations of the model.
        layers: Layers that are decided on; others bind nothing.

    Returns:
        Groups in the order of the forward pass, each layer in exactly one.
    """
    origins = _origins(flow, layers)
    views = _views(flow)
    order: dict[str, None] = {}
    readers: dict[int, list[str]] = {}
    bonds: list[list[str]] = []
    for op in flow:
        if op.kind == "conv" and op.module in layers:
            order[op.module] = None
            readers.setdefault(views.get(op.inputs[0], op.inputs[0]), []).append(op.module)
        if op.kind in MEETING and (made_by := set().union(*(origins.get(tensor, set()) for tensor in op.inputs))):
            bonds.append(sorted(made_by))
    return tuple(tuple(members) for members in connected(order, [*bonds, *readers.values()]))


def find_links(flow: tuple[Op, ...], layers: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Layers to the layers that read their result, straight or through joins, views and activations.

    Args:
        flow: Operations of the model.
        layers: Layers of interest, those that are kept in float among them.
    """
    origins = _origins(flow, layers)
    links: dict[str, list[str]] = {}
    for op in flow:
        if op.kind == "conv" and op.module in layers:
            for source in sorted(origins.get(op.inputs[0], ())):
                links.setdefault(source, []).append(op.module)
    return {source: tuple(dict.fromkeys(readers)) for source, readers in links.items()}


def _origins(flow: tuple[Op, ...], layers: Collection[str]) -> dict[int, set[str]]:
    """Tensors to the layers that made their values; what mixes tensors otherwise, as attention does, starts anew."""
    origins: dict[int, set[str]] = {}
    for op in flow:
        if op.kind == "conv":
            made_by = {op.module} if op.module in layers else set()
        elif op.kind == "other" and len(op.inputs) > 1:
            made_by = set()
        else:
            made_by = set().union(*(origins.get(tensor, set()) for tensor in op.inputs))
        for tensor in op.outputs:
            origins[tensor] = made_by
    return origins


def _views(flow: tuple[Op, ...]) -> dict[int, int]:
    """Tensors that are views, such as one half of a split, to themselves as a whole."""
    whole: dict[int, int] = {}
    for op in flow:
        if op.kind == "view":
            for tensor in op.outputs:
                whole[tensor] = whole.get(op.inputs[0], op.inputs[0])
    return whole
