# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses

import numpy as np
import pytest
import torch

from ultra_mq.core.errors import DataError
from ultra_mq.prepare.flow import trace_flow
from ultra_mq.prepare.placement import place_joins
from ultra_mq.quantization.ranges import calibrate, least_squares_amax


def histogram(values):
    counts, edges = np.histogram(np.abs(values), bins=2048, range=(0, np.abs(values).max()))
    return counts.astype(float), edges


def squared_error(values, amax):
    scale = amax / 127
    return float(((np.clip(np.round(values / scale), -127, 127) * scale - values) ** 2).sum())


def test_even_values_are_not_clipped():
    assert least_squares_amax([histogram(np.linspace(0, 1, 10_000))]) >= 0.99


def test_outliers_are_clipped_where_the_true_error_is_least():
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 100_000), [60.0]])
    chosen = least_squares_amax([histogram(values)])
    errors = {amax: squared_error(values, amax) for amax in 60 * np.linspace(0.1, 1, 91)}
    best = min(errors, key=errors.get)
    assert chosen < 60
    assert errors[min(errors, key=lambda amax: abs(amax - chosen))] <= 1.02 * errors[best]


def test_a_shared_range_has_the_least_error_over_all_tensors():
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(0, 1, 50_000), np.concatenate([rng.normal(0, 1, 50_000), [40.0] * 500])
    chosen = least_squares_amax([histogram(narrow), histogram(wide)])
    errors = {amax: squared_error(narrow, amax) + squared_error(wide, amax) for amax in 40 * np.linspace(0.1, 1, 91)}
    nearest = min(errors, key=lambda amax: abs(amax - chosen))
    assert errors[nearest] <= 1.02 * min(errors.values())
    assert least_squares_amax([histogram(narrow)]) < chosen


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


def test_ranges_are_for_all_layers_and_joins_or_for_layers_alone(model, batches, calibration):
    layers = {layer.name for layer in model.quantizable}
    joins = place_joins(trace_flow(model.module), dict.fromkeys(layers, "int8"))
    assert calibration.amax.keys() == {*layers, *joins}
    alone = calibrate(model, batches, "max", "torch").amax
    assert alone.keys() == layers
    shared = calibrate(model, batches, "max", "runtime").amax
    assert shared["model.13.cv1.conv"] == shared["model.11.resize0_quantizer"] >= alone["model.13.cv1.conv"]
    assert shared["model.0.conv"] == alone["model.0.conv"]


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_modelopts_methods_clip(method, model, batches):
    largest = calibrate(model, batches, "max").amax
    found = calibrate(model, batches, method).amax
    assert all(0 < found[name] <= largest[name] * 1.001 for name in largest)
    assert any(found[name] < 0.9 * largest[name] for name in largest)


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
