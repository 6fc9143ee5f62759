# SPDX-License-Identifier: AGPL-3.0-or-later
"""Things that belong together because something binds them, pair by pair."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def connected(items: Iterable[T], bonds: Iterable[Collection[T]]) -> list[list[T]]:
    """Connected components: items that bonds tie together, directly or by way of others.

    Args:
        items: What there is.
        bonds: Items that belong together, at least one each.

    Returns:
        Components in the order of their first items, each in the order of the items.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = {item: index for index, item in enumerate(items)}
    edges = [(number[one], number[other]) for bond in bonds for one, other in pairwise(bond)]
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    matrix = coo_array(([True] * len(edges), (rows, columns)), shape=(len(number), len(number)))
    components: dict[int, list[T]] = {}
    for item, label in zip(number, connected_components(matrix, directed=False)[1], strict=True):
        components.setdefault(int(label), []).append(item)
    return list(components.values())
