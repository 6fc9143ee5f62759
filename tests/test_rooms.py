# SPDX-License-Identifier: AGPL-3.0-or-later
"""The house: which names a room shows, how large its modules are, and that no two are called alike."""

import ast
import importlib
from pathlib import Path

import pytest

import ultra_mq

PACKAGE = Path(ultra_mq.__file__).parent
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if "trt_worker" not in path.parts]


def imports(path):
    """Modules of ours that a module imports from, each with the names it takes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ultra_mq"):
            yield node.module, [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names if alias.name.startswith("ultra_mq"))


def test_the_rooms():
    assert ROOMS == [
        "cli", "core", "deploy", "graph", "jobs", "measure", "plan", "prepare", "quantization", "report", "runtimes",
        "search", "session",
    ]  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_comes_in_and_goes_out(room):
    module = importlib.import_module(f"ultra_mq.{room}")
    assert all(word in module.__doc__ for word in ("In: ", "Out: "))
    assert module.__all__
    assert all(getattr(module, name) is not None for name in module.__all__)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_room_does_not_show_is_its_own(path):
    own = path.relative_to(PACKAGE).parts[0]
    if own in ("__init__.py", "__main__.py", "quant_modules.py"):
        return
    for module, names in imports(path):
        room, _, inner = module.removeprefix("ultra_mq").strip(".").partition(".")
        if room and room != own:
            assert not inner, f"{module} is private to {room}"
            shown = importlib.import_module(f"ultra_mq.{room}").__all__
            assert set(names) <= set(shown), f"{set(names) - set(shown)} of {room}"


def test_no_module_is_two():
    long = {path.name: lines for path in MODULES if (lines := len(path.read_text().splitlines())) > 300}
    assert long == {}


def test_no_two_modules_are_called_alike():
    names = [path.stem for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    assert sorted(names) == sorted(set(names))


def test_typing_information_is_shipped():
    assert (PACKAGE / "py.typed").exists()
