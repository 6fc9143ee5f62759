# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every command and snippet of README and docs runs, as written.

They name ``yolo11n.pt`` and ``coco128.yaml``; in the folder where they run, files of these names hold the model and the
data of the offline demo. Blocks marked ``sh`` install things, need a GPU or much time, or repeat a command.
"""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


COMMANDS = [
    pytest.param(line, id=f"{page.stem}: {line[:60]}")
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.splitlines()
    if line
]


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    from shapes import make_dataset

    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(weights, folder / "yolo11n.pt")
    data = make_dataset(folder / "data", train=8, val=4)
    shutil.copy(data, folder / "coco128.yaml")
    for task, suffix in (("segment", "-seg"), ("classify", "-cls")):
        make_dataset(folder / f"shapes-{task}", train=8, val=4, task=task)
        shutil.copy(weights.with_name(f"shapes-yolo11n{suffix}.pt"), folder)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    from ultralytics.utils import SETTINGS

    monkeypatch.chdir(folder)
    monkeypatch.setitem(SETTINGS, "runs_dir", str(folder / "runs"))
    monkeypatch.setattr("ultralytics.cfg.TESTS_RUNNING", False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, inside):
    from ultra_mq.cli import main

    program, *arguments = shlex.split(command)
    assert program == "ultra-mq"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_snippets(page, inside, monkeypatch):
    script = inside / f"{page.stem}_snippets.py"
    script.write_text("\n".join(blocks(page, "python")))
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script))


def test_recipe_reference_is_up_to_date():
    render = runpy.run_path(str(ROOT / "scripts" / "recipe_reference.py"))["render"]
    assert (ROOT / "docs" / "recipes.md").read_text() == render()


def test_links_lead_somewhere():
    for page in [*PAGES, *(ROOT / "docs" / "results").glob("*.md")]:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_blocks_of_the_docs_are_of_known_kinds():
    kinds = {kind for page in PAGES for kind in re.findall(r"^```(\w+)$", page.read_text(), re.MULTILINE)}
    assert kinds <= {"bash", "python", "sh", "yaml"}


def test_examples_of_recipes_and_sweeps_are_valid(tmp_path):
    from ultra_mq.jobs.sweep.sweep_file import load_sweep
    from ultra_mq.session.recipe import make_recipe

    recipe, sweep = blocks(ROOT / "docs" / "budgets.md", "yaml")
    assert make_recipe(yaml.safe_load(recipe)).criteria.max_drop == 0.5
    (tmp_path / "sweep.yaml").write_text(sweep)
    assert load_sweep(tmp_path / "sweep.yaml").trials == 40


def test_changelog_and_version_agree():
    import ultra_mq

    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert ultra_mq.__version__ == released[0]
    assert f"version: {released[0]}" in (ROOT / "CITATION.cff").read_text()
    assert yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
