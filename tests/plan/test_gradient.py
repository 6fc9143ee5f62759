# SPDX-License-Identifier: AGPL-3.0-or-later
import copy
import dataclasses

import numpy as np
import pytest
import torch

from ultra_mq.core.errors import ModelError
from ultra_mq.plan.gradient import measure_sensitivity
from ultra_mq.quantization.apply import apply_formats


def test_every_quantizable_layer_is_scored(model, sensitivity):
    assert list(sensitivity.scores) == [layer.name for layer in model.quantizable]
    assert all(score["int8"] > 0 for score in sensitivity.scores.values())
    assert sensitivity.images == 8


@pytest.fixture(scope="module")
def small(model):
    """The model with eight quantizable layers, which is scored in seconds."""
    return dataclasses.replace(
        model, quantizable=model.quantizable[::11], kept=tuple(set(model.quantizable) - set(model.quantizable[::11]))
    )


@pytest.mark.parametrize("loss", ["outputs", "labels"])
def test_scores_repeat_and_the_model_is_untouched(small, calibration, batches, loss):
    before = copy.deepcopy(small.module.state_dict())
    first, second = (measure_sensitivity(small, calibration, batches, loss) for _ in range(2))
    assert first == second
    assert len(first.scores) == 8
    assert any(score["int8"] > 0 for score in first.scores.values())
    assert all(torch.equal(value, before[name]) for name, value in small.module.state_dict().items())
    assert not any("quantizer" in name for name, _ in small.module.named_modules())


def test_a_layer_is_scored_alone(small, sensitivity, calibration, batches):
    """Scores do not depend on which other layers are scored."""
    scores = measure_sensitivity(small, calibration, batches, "outputs").scores
    for name, score in scores.items():
        assert score["int8"] == pytest.approx(sensitivity.scores[name]["int8"], rel=1e-3)


def test_scores_rank_the_real_damage(model, calibration, batches, sensitivity):
    """The layers with the highest scores change the outputs more than those with the lowest."""
    order = sorted(sensitivity.scores, key=lambda name: sensitivity.scores[name]["int8"])
    images = next(iter(batches))["img"]
    with torch.no_grad():
        expected = model.module(images)[1]["scores"].sigmoid()

    def damage(names):
        with torch.no_grad():
            output = apply_formats(model, dict.fromkeys(names, "int8"), calibration)(images)[1]["scores"].sigmoid()
        return float((output - expected).square().sum())

    quarter = len(order) // 4
    assert damage(order[-quarter:]) > 4 * damage(order[:quarter])
    singles = [damage([name]) for name in order[::10]]
    ranks = np.argsort(np.argsort(singles))
    assert np.corrcoef(ranks, np.arange(len(ranks)))[0, 1] > 0.6


def test_a_model_without_gradient_is_an_error(small, calibration, batches):
    module = copy.deepcopy(small.module)
    with torch.no_grad():
        for layer in module.model[23].modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.zero_()
    with pytest.raises(ModelError, match="all zero or not finite"):
        measure_sensitivity(dataclasses.replace(small, module=module), calibration, batches, "outputs")
