# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plans with structure: quantized but for the first stages, the last ones, both, or one alone.

They have few borders between precisions, and the stages that lose most are often the first and the last, so that the
fastest plans within a loss are among them more often than sums of scores and costs can tell.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

SHARES = (1 / 2, 1 / 8, 1 / 4, 3 / 8, 3 / 4)
"""Shares of the layers in float at which probes cut, in the order in which they tell most."""


def structural_choices(uniform: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Everything in one format but for whole stages.

    Args:
        uniform: Layer to format, where everything that can be is quantized, in the order of the forward pass.

    Returns:
        Name to choice: every way to leave the first stages, the last ones, both, or one alone in float.
    """
    stages = _stages(uniform)
    first = [(f"to {stages[end - 1]}", stages[:end]) for end in range(1, len(stages))]
    last = [(f"from {stages[begin]}", stages[begin:]) for begin in range(1, len(stages))]
    alone = [(stage, [stage]) for stage in stages[1:-1]]
    both = [
        (f"{one} and {other}", [*head, *tail])
        for (one, head), (other, tail) in itertools.product(first, last)
        if len(head) + len(tail) < len(stages)
    ]
    return {f"float {name}": _without(uniform, floats) for name, floats in (*first, *last, *alone, *both)}


def probe_choices(uniform: Mapping[str, str], number: int) -> dict[str, dict[str, str]]:
    """Structural choices to learn latencies from: float up to a stage and from a stage on, in turns.

    The first two leave complementary halves in float, so that every layer is seen in float beside quantized ones.
    """
    stages = _stages(uniform)
    if len(stages) < 2:
        return {}
    found: dict[str, dict[str, str]] = {}
    for share in SHARES:
        head = _cut(uniform, stages, share)
        tail = stages[len(head) :] if share == SHARES[0] else _cut(uniform, stages[::-1], share)[::-1]
        found[f"float to {head[-1]}"] = _without(uniform, head)
        found[f"float from {tail[0]}"] = _without(uniform, tail)
    return dict(itertools.islice(found.items(), number))


def stage_of(layer: str) -> str:
    """Stage of a network that a layer is part of, ``model.2`` of ``model.2.cv1.conv``."""
    return ".".join(layer.split(".")[:2])


def _stages(layers: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(stage_of(layer) for layer in layers))


def _cut(uniform: Mapping[str, str], stages: Sequence[str], share: float) -> list[str]:
    """The first stages that hold about a share of the layers, at least one and not all."""
    held = [sum(stage_of(layer) in stages[:end] for layer in uniform) for end in range(1, len(stages))]
    end = min(range(len(held)), key=lambda index: abs(held[index] - share * len(uniform)))
    return list(stages[: end + 1])


def _without(uniform: Mapping[str, str], stages: Sequence[str]) -> dict[str, str]:
    return {layer: option for layer, option in uniform.items() if stage_of(layer) not in stages}
