# SPDX-License-Identifier: AGPL-3.0-or-later
"""Recovery on a GPU: ranges and weights lie on one device, which they did not."""

import pytest
import torch

from ultra_mq.prepare.data import Batches
from ultra_mq.prepare.model import load_model, uniform_formats
from ultra_mq.quantization.apply import apply_formats
from ultra_mq.quantization.recovery import recover

pytestmark = pytest.mark.gpu


def test_a_network_recovers_on_the_gpu(weights, data, calibration):
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    model = load_model(weights, "cuda:0")
    module = apply_formats(model, uniform_formats(model, "int8"), calibration)
    images = Batches(data.calibration, list(range(8)), 4, "cuda:0")
    found = recover(module, model.module, images, epochs=1)
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"cuda"}
    assert found.losses[found.kept] == min(found.losses)
