# SPDX-License-Identifier: AGPL-3.0-or-later
import copy
import dataclasses

import pytest
import torch

from ultra_mq.core.errors import ModelError
from ultra_mq.plan.perturb import measure_perturbation, visible_changes


@pytest.fixture(scope="module")
def scores(model, calibration, batches):
    return measure_perturbation(model, calibration, batches)


def test_every_layer_has_a_score(model, scores):
    assert list(scores.scores) == [layer.name for layer in model.quantizable]
    assert scores.method == "perturb"
    assert all(by_format["int8"] >= 0 for by_format in scores.scores.values())


def test_a_score_is_what_one_quantized_layer_changes(model, calibration, batches, scores):
    """The same by another way: the layer quantized by a plan, the whole network run again."""
    from ultra_mq.quantization.apply import apply_formats

    name = "model.16.cv2.conv"
    module = apply_formats(model, {name: "int8"}, calibration)
    total = 0
    with torch.no_grad():
        for batch in batches:
            total = total + visible_changes(module(batch["img"]), model.module(batch["img"]))
    expected = float((total / len(batches.indices)).norm())
    assert scores.scores[name]["int8"] == pytest.approx(expected, rel=1e-3)


def test_nothing_moves_where_nothing_changes(model, batches):
    with torch.no_grad():
        output = model.module(next(iter(batches))["img"])
    assert visible_changes(output, output).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_changes_count_logits_and_boxes():
    logits = torch.full((1, 2, 3), -2.0)
    boxes = torch.ones(1, 4, 3)
    moved = {"scores": logits + torch.tensor([0.5, 0.0]).view(1, 2, 1), "boxes": boxes.clone()}
    moved["boxes"][:, 2] = 3  # from 2 x 2 to 4 x 2: IoU one half
    found = visible_changes((None, moved), (None, {"scores": logits, "boxes": boxes}))
    assert found.tolist() == pytest.approx([0.5, 2.0 * 0.5])


def test_changes_below_what_is_reported_do_not_count():
    low, lower = ({"scores": torch.full((1, 1, 2), value), "boxes": torch.ones(1, 4, 2)} for value in (-12.0, -20.0))
    assert visible_changes((None, lower), (None, low)).tolist() == [0, 0]


def test_a_broken_network_is_an_error(model, calibration, batches):
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        for layer in module.model[23].modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.zero_()
    with pytest.raises(ModelError, match="all zero or not finite"):
        measure_perturbation(dataclasses.replace(model, module=module), calibration, batches)
