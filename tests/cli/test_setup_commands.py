# SPDX-License-Identifier: AGPL-3.0-or-later
"""What comes before the first run: init, completion, schemas."""

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from ultra_mq.cli import main
from ultra_mq.plan.precision_plan import save_plan
from ultra_mq.session.json_schema import KINDS, make_schema, schema_file
from ultra_mq.session.recipe import load_recipe

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("answers", "budget"),
    [
        ("a.pt\nd.yaml\nsize\n10\n", {"bits": 10.0}),
        ("\n\n\n\n", {"max_drop": 0.5}),
        ("a.pt\nd.yaml\nspeed\n1.5\n", {"min_speedup": 1.5}),
    ],
)
def test_init_asks_and_writes_a_recipe_that_loads(answers, budget):
    done = CliRunner().invoke(main, ["init"], input=answers)
    assert done.exit_code == 0, done.output
    assert "ultra-mq run recipe.yaml" in done.output
    recipe = load_recipe("recipe.yaml")
    (variant,) = recipe.variants
    assert {name: getattr(variant, name) for name in budget} == budget
    assert recipe.model == ("a.pt" if answers[0] == "a" else "yolo11n.pt")
    assert Path("recipe.yaml").read_text().startswith("# yaml-language-server: $schema=")


def test_init_keeps_what_is_there():
    Path("recipe.yaml").write_text("mine")
    done = CliRunner().invoke(main, ["init"])
    assert done.exit_code == 2
    assert "exists already" in done.output
    assert Path("recipe.yaml").read_text() == "mine"


def test_init_refuses_what_no_recipe_takes():
    done = CliRunner().invoke(main, ["init"], input="a.pt\nd.yaml\nsize\n40\n")
    assert done.exit_code == 2
    assert "40" in done.output
    assert not Path("recipe.yaml").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_in_the_package_are_those_of_the_code(kind):
    assert schema_file(kind).read_text() == make_schema(kind), "run python scripts/schemas.py"
    assert json.loads(CliRunner().invoke(main, ["schema", kind]).stdout) == json.loads(make_schema(kind))


def test_our_own_recipes_and_plans_fit_their_schemas(plan, tmp_path):
    recipe = jsonschema.Draft202012Validator(json.loads(make_schema("recipe")))
    for path in (ROOT / "recipes").glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        if "schema" not in document and "objectives" not in document:
            recipe.validate(document)
    assert list(recipe.iter_errors({"modle": "a.pt"}))
    assert list(recipe.iter_errors({"calibration": {"images": 0}}))
    save_plan(plan, tmp_path / "plan.yaml")
    jsonschema.Draft202012Validator(json.loads(make_schema("plan"))).validate(
        yaml.safe_load((tmp_path / "plan.yaml").read_text())
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert "_ULTRA_MQ_COMPLETE" in done.stdout
    if shutil.which(shell):
        (Path("c")).write_text(done.stdout)
        assert subprocess.run([shell, "-n", "c"], check=False).returncode == 0


def test_the_shell_gets_commands(monkeypatch):
    environment = {"_ULTRA_MQ_COMPLETE": "bash_complete", "COMP_WORDS": "ultra-mq pa", "COMP_CWORD": "1"}
    done = CliRunner().invoke(main, [], env=environment, prog_name="ultra-mq")
    assert done.stdout.split() == ["plain,package", "plain,pareto"]
