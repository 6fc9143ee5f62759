# SPDX-License-Identifier: AGPL-3.0-or-later
"""A plan on the torch model: recovery is part of it, and of what its files depend on."""

import pytest
import torch

from ultra_mq.plan.precision_plan import uniform_plan
from ultra_mq.session import quantized
from ultra_mq.session.artefacts import Artefacts
from ultra_mq.session.recipe import make_recipe
from ultra_mq.session.session import open_session, with_recipe


@pytest.fixture(scope="module")
def session(small_weights, shapes):
    document = {
        "model": str(small_weights), "data": str(shapes), "imgsz": 160,
        "calibration": {"images": 8, "bias_correction": 4}, "recover": {"enabled": True, "images": 12, "epochs": 2},
    }  # fmt: skip
    return open_session(make_recipe(document))


def test_a_recovered_model_comes_from_the_cache(session, monkeypatch):
    plan = uniform_plan(session.model, "int8")
    made = Artefacts(session, plan)
    first = made.module()
    assert len(made.recovery().losses) == 3
    monkeypatch.setattr(quantized, "recover", lambda *_, **__: pytest.fail("it was recovered before"))
    again = made.module()
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not list((session.cache.root / "unfinished").glob("*"))


def test_recovery_is_part_of_the_graphs_key(session):
    plan = uniform_plan(session.model, "int8")
    plain = session.recipe.model_copy(update={"recover": session.recipe.recover.model_copy(update={"enabled": False})})
    without = Artefacts(with_recipe(session, plain), plan)
    assert without.key != Artefacts(session, plan).key
    assert without.recovery() is None


def test_the_float_model_is_not_recovered(session):
    assert Artefacts(session, uniform_plan(session.model, "fp16")).recovery() is None
