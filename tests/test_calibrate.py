# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses

import numpy as np
import pytest
import torch

from ultra_mq.calibrate import calibrate, least_squares_amax
from ultra_mq.errors import DataError


def histogram(values):
    counts, edges = np.histogram(np.abs(values), bins=2048, range=(0, np.abs(values).max()))
    return counts.astype(float), edges


def squared_error(values, amax):
    scale = amax / 127
    return float(((np.clip(np.round(values / scale), -127, 127) * scale - values) ** 2).sum())


def test_even_values_are_not_clipped():
    assert least_squares_amax(*histogram(np.linspace(0, 1, 10_000))) >= 0.99


def test_outliers_are_clipped_where_the_true_error_is_least():
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 100_000), [60.0]])
    chosen = least_squares_amax(*histogram(values))
    errors = {amax: squared_error(values, amax) for amax in 60 * np.linspace(0.1, 1, 91)}
    best = min(errors, key=errors.get)
    assert chosen < 60
    assert errors[min(errors, key=lambda amax: abs(amax - chosen))] <= 1.02 * errors[best]


def test_max_is_the_largest_input(model, batches):
    calibration = calibrate(model, batches, "max")
    layer = dict(model.module.named_modules())["model.1.conv"]
    largest = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: largest.append(float(inputs[0].abs().max())))
    with torch.no_grad():
        for batch in batches:
            model.module(batch["img"])
    handle.remove()
    assert calibration.amax["model.1.conv"] == pytest.approx(max(largest), rel=1e-3)
    assert calibration.amax.keys() == {layer.name for layer in model.quantizable}


def test_mse_never_exceeds_max(model, batches, calibration):
    largest = calibrate(model, batches, "max").amax
    assert all(calibration.amax[name] <= largest[name] * 1.001 for name in largest)
    assert any(calibration.amax[name] < 0.8 * largest[name] for name in largest)


def test_broken_weights_are_named(model, batches):
    import copy

    module = copy.deepcopy(model.module)
    with torch.no_grad():
        module.model[0].conv.weight.fill_(float("nan"))
    with pytest.raises(DataError, match=r"input of 'model\.1\.conv' is not finite"):
        calibrate(dataclasses.replace(model, module=module), batches)
