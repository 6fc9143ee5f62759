# SPDX-License-Identifier: AGPL-3.0-or-later
from ultra_mq.prepare.components import connected


def test_bonds_chain():
    assert connected("abcdef", ["ab", "bc", "ef"]) == [["a", "b", "c"], ["d"], ["e", "f"]]


def test_without_bonds_everything_stands_alone():
    assert connected("ab", []) == [["a"], ["b"]]
    assert connected((), ()) == []
