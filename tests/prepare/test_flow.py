# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests of the recorded flow of tensors."""

import weakref

import torch
from torch import nn

from ultra_mq.prepare.flow import observe_flow, trace_flow


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(2, 2, 1)
        self.pool = nn.MaxPool2d(2, 1)

    def forward(self, x):
        a, b = self.first(x).chunk(2, 1)
        b = b + self.second(b)
        return self.pool(torch.cat((a, b + 1), 1))


def test_operations_are_recorded_with_their_module_and_the_tensors_they_share():
    ops = trace_flow(Branch())
    assert [(op.kind, op.module) for op in ops] == [
        ("conv", "first"), ("view", ""), ("conv", "second"), ("add", ""), ("other", ""), ("cat", ""), ("pool", "pool"),
    ]  # fmt: skip
    first, chunk, second, add, plus_one, cat, pool = ops
    assert chunk.inputs == first.outputs
    assert second.inputs == chunk.outputs[1:]
    assert add.inputs == (chunk.outputs[1], second.outputs[0])
    assert cat.inputs == (chunk.outputs[0], plus_one.outputs[0])
    assert pool.inputs == cat.outputs


def test_every_operation_is_shown_with_what_it_reads(model):
    shapes = {}
    observe_flow(model.module, torch.zeros(2, 3, 96, 96), lambda op, inputs: shapes.setdefault(op.module, inputs))
    assert shapes["model.0.conv"][0].shape == (2, 3, 96, 96)
    assert [tensor.shape[-1] for tensor in shapes["model.12"]] == [6, 6]  # a concat after upsampling from stride 32


def test_every_convolution_of_a_model_is_seen_once(model):
    seen = [op.module for op in trace_flow(model.module) if op.kind == "conv"]
    assert sorted(seen) == sorted(layer.name for layer in (*model.quantizable, *model.kept))


def test_tensors_are_freed_while_images_pass():
    """Calibration at full size needs no more memory than inference: what nobody reads any more is gone."""
    alive, most = [], 0
    chain = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(20)))

    def observe(op, inputs):
        nonlocal most
        alive.append(weakref.ref(inputs[0]))
        most = max(most, sum(tensor() is not None for tensor in alive))

    observe_flow(chain, torch.zeros(1, 3, 8, 8), observe)
    assert len(alive) == 20
    assert most <= 3


def test_a_freed_tensors_number_is_not_given_again():
    numbers = [op.outputs[0] for op in trace_flow(nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(50))))]
    assert len(set(numbers)) == 50


def test_the_hooks_are_gone_afterwards(model):
    trace_flow(model.module)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.module.modules())
