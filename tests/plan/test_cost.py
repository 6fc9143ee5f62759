# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest

from ultra_mq.plan.cost import cost_in_format, count_macs, layer_sizes


def test_weights_are_counted_as_modelopt_does(model):
    sizes = layer_sizes(model, "weights", 160)
    assert sizes["model.0.conv"] == 432
    assert sum(sizes.values()) == sum(layer.numel for layer in model.quantizable)


def test_macs_of_known_layers(model):
    macs = count_macs(model.module, 320)
    assert macs["model.0.conv"] == 160 * 160 * 16 * 27
    assert macs["model.1.conv"] == 80 * 80 * 32 * 16 * 9
    assert macs["model.23.cv3.0.0.0.conv"] == 40 * 40 * 64 * 9  # depthwise: one input channel an output


def test_macs_grow_with_the_image(model):
    small, large = (sum(layer_sizes(model, "macs", size).values()) for size in (160, 320))
    assert large == pytest.approx(4 * small, rel=0.02)  # attention is no convolution, all else scales with the area


def test_cost_is_size_times_bits():
    assert cost_in_format(100, "int8") == 800
    assert cost_in_format(100, "fp16") == 1600
