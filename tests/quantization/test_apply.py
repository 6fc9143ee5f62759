# SPDX-License-Identifier: AGPL-3.0-or-later
import copy

import pytest
import torch
from ultralytics import YOLO

from ultra_mq.plan.precision_plan import uniform_plan
from ultra_mq.prepare.model import uniform_formats
from ultra_mq.quantization.apply import apply_formats, correct_biases, save_checkpoint


def enabled(module):
    layers = dict(module.named_modules())
    return {
        name
        for name, layer in layers.items()
        if hasattr(layer, "weight_quantizer") and layer.weight_quantizer.is_enabled and layer.input_quantizer.is_enabled
    }


def test_quantizers_stand_where_the_plan_wants_them(quantized, plan, calibration):
    assert enabled(quantized) == set(plan.quantized)
    layers = dict(quantized.named_modules())
    for name in plan.quantized:
        assert float(layers[name].input_quantizer.amax) == pytest.approx(calibration.amax[name])
        weight = layers[name].weight.detach()
        assert torch.allclose(layers[name].weight_quantizer.amax.flatten(), weight.abs().amax((1, 2, 3)))
    others = [
        layer for name, layer in layers.items() if hasattr(layer, "weight_quantizer") and name not in plan.quantized
    ]
    assert others
    assert not any(layer.weight_quantizer.is_enabled or layer.input_quantizer.is_enabled for layer in others)


def test_int8_has_255_values(quantized, plan, batches):
    """The fake-quantized weights of a channel are multiples of amax / 127."""
    layer = dict(quantized.named_modules())[next(iter(plan.quantized))]
    weight = layer.weight_quantizer(layer.weight).detach()
    steps = weight / (layer.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert steps.abs().max() == pytest.approx(127, abs=1e-3)


def test_uniform_float_changes_nothing(model, calibration, batches):
    images = next(iter(batches))["img"]
    module = apply_formats(model, uniform_formats(model, "fp16"), calibration)
    with torch.no_grad():
        assert torch.equal(module(images)[0], model.module(images)[0])


def test_bias_correction_removes_the_mean_shift(model, calibration, batches):
    plan = uniform_plan(model, "int8")
    # Layers alone: what a join shifts is no layer's fault, and stays.
    plain = apply_formats(model, plan.quantized, calibration, placement="torch")
    corrected = apply_formats(model, plan.quantized, calibration, batches, placement="torch")
    images = torch.cat([batch["img"] for batch in batches])

    def mean_shift(module):
        """Mean over layers of the shift of channel means, relative to the float layer's spread."""
        means = []
        for network in (model.module, module):
            outputs = {}
            layers = dict(network.named_modules())
            handles = [
                layers[name].register_forward_hook(lambda *a, name=name, outputs=outputs: outputs.update({name: a[2]}))
                for name in plan.quantized
            ]
            with torch.no_grad():
                network(images)
            for handle in handles:
                handle.remove()
            means.append(outputs)
        shifts = [
            (means[1][name].mean((0, 2, 3)) - means[0][name].mean((0, 2, 3))).abs().mean() / means[0][name].std()
            for name in plan.quantized
        ]
        return float(torch.stack(shifts).mean())

    assert mean_shift(corrected) < 0.75 * mean_shift(plain)


def test_a_checkpoint_keeps_the_quantizers(quantized, model, plan, batches, tmp_path):
    save_checkpoint(quantized, model, tmp_path / "q.pt")
    loaded = YOLO(tmp_path / "q.pt").model
    assert enabled(loaded) == set(plan.quantized)
    images = next(iter(batches))["img"]
    with torch.no_grad():
        # Ultralytics stores weights in FP16.
        assert (loaded(images)[0] - quantized(images)[0]).abs().mean() < 0.2


def test_channels_of_a_linear_layer_come_last():
    """Tokens of an attention block: shape (B, N, C), where the mean shift belongs to C."""
    from torch import nn

    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(4, 3))
    module = copy.deepcopy(reference)
    shift = torch.tensor([0.5, -1.0, 2.0])
    with torch.no_grad():
        module[0].bias += shift
    images = [{"img": torch.randn(2, 5, 4)}]
    correct_biases(module, reference, ["0"], images)
    assert torch.allclose(module[0].bias, reference[0].bias, atol=1e-6)


def test_gradients_flow(quantized, batches):
    module = copy.deepcopy(quantized).train()
    module(next(iter(batches))["img"])["scores"].sum().backward()
    gradients = [parameter.grad for name, parameter in module.named_parameters() if ".dfl." not in name]
    assert sum(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients) > 150
