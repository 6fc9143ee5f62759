# SPDX-License-Identifier: AGPL-3.0-or-later
"""Recovery of the demo's model: it helps on images it has not seen, never hurts, and goes on where it was cut off."""

import numpy as np
import pytest
import torch

from ultra_mq.core.errors import ModelError
from ultra_mq.prepare.data import Batches, choose
from ultra_mq.prepare.model import uniform_formats
from ultra_mq.quantization import recovery
from ultra_mq.quantization.apply import apply_formats
from ultra_mq.quantization.learnable_ranges import learnable_ranges
from ultra_mq.quantization.recovery import RecoveryRates, load_recovered, load_recovery, recover, save_recovery


@pytest.fixture
def quantized(model, calibration):
    return apply_formats(model, uniform_formats(model, "int8"), calibration)


@pytest.fixture
def images(data):
    return Batches(data.calibration, choose(data.calibration, 12), 4)


def amax_of(module):
    return {
        name: float(value)
        for name, value in module.state_dict().items()
        if name.endswith("_amax") and value.numel() == 1
    }


def test_what_is_learnt_holds_on_images_held_out(quantized, model, images):
    before = {name: value.clone() for name, value in quantized.state_dict().items()}
    shared = {}
    for name, value in amax_of(quantized).items():
        shared.setdefault(value, []).append(name)
    found = recover(quantized, model.module, images, epochs=3)
    assert len(found.losses) == 4
    assert found.losses[found.kept] == min(found.losses)
    assert found.kept > 0
    assert found.losses[found.kept] < 0.99 * found.losses[0]
    assert any(not torch.equal(value, before[name]) for name, value in quantized.state_dict().items())
    after = amax_of(quantized)
    for names in shared.values():  # a concat's operands must not part
        assert len({after[name] for name in names}) == 1


def test_a_recovery_that_helps_nothing_changes_nothing(quantized, model, images):
    before = {name: value.clone() for name, value in quantized.state_dict().items()}
    found = recover(quantized, model.module, images, epochs=1, rates=RecoveryRates(1.0, 1.0, 1.0))
    assert found.kept == 0
    assert all(torch.equal(value, before[name]) for name, value in quantized.state_dict().items())


def test_an_interrupted_recovery_goes_on(quantized, model, calibration, images, tmp_path, monkeypatch):
    whole = apply_formats(model, uniform_formats(model, "int8"), calibration)
    expected = recover(whole, model.module, images, epochs=3)
    saved = recovery._Saved.save
    calls = []

    def interrupt(self, *state):
        saved(self, *state)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(recovery._Saved, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        recover(quantized, model.module, images, epochs=3, resume=tmp_path)
    monkeypatch.setattr(recovery._Saved, "save", saved)
    again = apply_formats(model, uniform_formats(model, "int8"), calibration)
    found = recover(again, model.module, images, epochs=3, resume=tmp_path)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    assert found.kept == expected.kept


def test_it_is_read_back(quantized, model, calibration, images, tmp_path):
    found = recover(quantized, model.module, images, epochs=1)
    save_recovery(quantized, found, tmp_path)
    other = apply_formats(model, uniform_formats(model, "int8"), calibration)
    load_recovered(other, tmp_path)
    assert load_recovery(tmp_path) == found
    for name, value in quantized.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_one_batch_is_too_few(quantized, model, data):
    with pytest.raises(ModelError, match="two batches"):
        recover(quantized, model.module, Batches(data.calibration, [0, 1], 4))


def test_learnable_ranges_quantize_as_before(quantized, model, images):
    """Blocks whose joins are quantized must not take the quantizer's own arithmetic for theirs."""
    pixels = next(iter(images))["img"]
    with torch.no_grad():
        reference = model.module(pixels)[1]
        before = quantized(pixels)[1]
        with learnable_ranges(quantized):
            inside = quantized(pixels)[1]
    for name in ("scores", "boxes"):
        # A value at the edge of a step may fall to the other side, and layers behind it make more of it.
        quantization = (before[name] - reference[name]).square().mean()
        assert (inside[name] - reference[name]).square().mean() < 1.3 * quantization
        assert (inside[name] - before[name]).square().mean() < 0.5 * quantization
