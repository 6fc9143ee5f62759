# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests of the blocks that quantize their joins, against sums and concats done by hand."""

import copy
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from ultralytics import YOLO

from ultra_mq.prepare.model import uniform_formats
from ultra_mq.quantization.apply import apply_formats, save_checkpoint


def rounded(tensor, amax):
    return torch.clamp(torch.round(tensor / (amax / 127)), -128, 127) * (amax / 127)


@pytest.fixture(scope="module")
def int8(model, calibration):
    return apply_formats(model, uniform_formats(model, "int8"), calibration)


def test_a_residual_add_rounds_both_operands(int8, calibration):
    block = int8.model[2].m[0]
    images = torch.rand(1, block.cv1.conv.in_channels, 8, 8)
    with torch.no_grad():
        branch = block.cv2(block.cv1(images))
        by_hand = rounded(images, calibration.amax["model.2.m.0.add0_quantizer0"]) + rounded(
            branch, calibration.amax["model.2.m.0.add0_quantizer1"]
        )
        assert torch.allclose(block(images), by_hand, atol=1e-5)


def test_a_concat_rounds_all_operands_in_one_scale(int8, calibration):
    concat, amax = int8.model[12], calibration.amax["model.12.cat0_quantizer"]
    images = [torch.randn(1, 4, 8, 8), torch.randn(1, 2, 8, 8)]
    assert torch.allclose(concat(images), rounded(torch.cat(images, 1), amax), atol=1e-5)


def test_a_block_leaves_the_joins_of_its_children_to_them(int8):
    """A C3k2 block runs a C3k block, which runs two bottlenecks: each has a concat or an add of its own."""
    calls = []
    block = int8.model[6]
    quantizers = {
        name: module
        for name, module in block.named_modules()
        if name.rpartition(".")[2].startswith(("add0_quantizer", "cat0_quantizer"))
    }
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, module in quantizers.items()
    ]
    with torch.no_grad():
        block(torch.rand(1, block.cv1.conv.in_channels, 8, 8))
    for handle in handles:
        handle.remove()
    assert calls == [
        "m.0.m.0.add0_quantizer0", "m.0.m.0.add0_quantizer1", "m.0.m.1.add0_quantizer0", "m.0.m.1.add0_quantizer1",
        "m.0.cat0_quantizer", "m.0.cat0_quantizer", "cat0_quantizer", "cat0_quantizer", "cat0_quantizer",
    ]  # fmt: skip


def test_threads_do_not_take_each_others_blocks(int8):
    """Threads inside blocks at once: each quantizes its own joins, as one alone does.

    Each has a network of its own, since ModelOpt's quantized convolutions are not safe to share.
    """
    blocks = [copy.deepcopy(int8.model[6]) for _ in range(4)]
    images = [torch.rand(1, blocks[0].cv1.conv.in_channels, 16, 16) for _ in blocks]

    def run(block, image):
        with torch.no_grad():
            return [block(image) for _ in range(8)]

    alone = [run(block, image)[0] for block, image in zip(blocks, images, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, blocks, images))
    for expected, results in zip(alone, together, strict=True):
        assert all(torch.equal(expected, result) for result in results)


def test_layers_alone_leave_the_joins_in_float(model, calibration):
    module = apply_formats(model, uniform_formats(model, "int8"), calibration, placement="torch")
    images = [torch.randn(1, 4, 8, 8), torch.randn(1, 2, 8, 8)]
    assert torch.equal(module.model[12](images), torch.cat(images, 1))
    assert not any("cat0" in name or "add0" in name for name, _ in module.named_modules())


def test_a_checkpoint_loads_where_nobody_imported_us(int8, model, tmp_path):
    path = tmp_path / "int8.pt"
    save_checkpoint(int8, model, path)
    script = (
        "import json, sys; from ultralytics import YOLO; module = YOLO(sys.argv[1]).model\n"
        "names = [n for n, m in module.named_modules() if type(m).__name__ == 'TensorQuantizer' and m.is_enabled]\n"
        "record = module.quantization\n"
        "print(json.dumps([sorted(names), record.placement, len(record.formats)]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    names, placement, quantized = json.loads(done.stdout.splitlines()[-1])
    enabled = [n for n, m in int8.named_modules() if type(m).__name__ == "TensorQuantizer" and m.is_enabled]
    assert names == sorted(enabled)
    assert (placement, quantized) == ("runtime", len(model.quantizable))
    images = [torch.randn(1, 4, 8, 8), torch.randn(1, 2, 8, 8)]
    loaded = YOLO(path).model.model[12]
    assert torch.allclose(loaded(images), int8.model[12](images), atol=1e-3)


def test_modelopts_own_configuration_is_not_disturbed(weights):
    """Registered blocks without joins of ours behave as before under ModelOpt's default configuration."""
    import modelopt.torch.quantization as mtq

    module = YOLO(weights).model.float().eval()
    mtq.quantize(module, mtq.INT8_DEFAULT_CFG, lambda network: network(torch.rand(1, 3, 64, 64)))
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and hasattr(layer, "input_quantizer")]
    assert len(layers) == 88
    images = [torch.randn(1, 4, 8, 8), torch.randn(1, 2, 8, 8)]
    assert torch.equal(module.model[12](images), torch.cat(images, 1))
