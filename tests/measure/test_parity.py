# SPDX-License-Identifier: AGPL-3.0-or-later
"""Torch against ONNX in what is predicted: chance passes, what is really gone fails."""

import dataclasses

import numpy as np
import pytest

from ultra_mq.core.errors import EvaluationError
from ultra_mq.measure.accuracy import compare
from ultra_mq.measure.bootstrap import Drop
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.measure.layer_parity import Parting
from ultra_mq.measure.parity import Parity, check_parity
from ultra_mq.runtimes.onnxruntime import OnnxRuntime


@pytest.fixture(scope="module")
def sides(model, quantized, qdq, data):
    reference = evaluate(model.module, data, label="FP32")
    torch_side = compare(evaluate(quantized, data, label="torch"), reference.predictions)
    onnx_side = compare(evaluate(OnnxRuntime(qdq.path), data, label="ONNX"), reference.predictions)
    return reference, torch_side, onnx_side


def test_what_is_predicted_is_compared_with_an_interval(sides):
    reference, torch_side, onnx_side = sides
    parity = check_parity(torch_side, onnx_side, reference, (Parting("model.0.conv", 0.0),), 0.02)
    assert parity.holds
    assert parity.gap.low <= parity.gap.points <= parity.gap.high
    assert parity.agreement == (torch_side.agreement, onnx_side.agreement)
    assert "the same within its interval" in str(parity)


def test_detections_that_are_gone_fail(sides):
    reference, torch_side, onnx_side = sides
    found = onnx_side.predictions
    keep = np.flatnonzero(found.scores < 0.3)
    fewer = dataclasses.replace(
        found,
        file_names=tuple(found.file_names[index] for index in keep),
        **{name: getattr(found, name)[keep] for name in ("classes", "boxes", "scores", "correct")},
    )
    broken = compare(dataclasses.replace(onnx_side, predictions=fewer), reference.predictions)
    parity = check_parity(torch_side, broken, reference, (), 0.02)
    assert not parity.holds
    assert "agreement parts by" in str(parity)


@pytest.mark.parametrize(
    ("low", "high", "holds"), [(-1.0, 4.0, True), (1.9, 4.0, True), (2.1, 4.0, False), (-5.0, -2.1, False)]
)
def test_only_an_interval_beyond_the_limit_fails(low, high, holds):
    """Torch and ONNX parted by 2.14 points on 64 images where nothing was wrong."""
    assert Parity(None, (0.9, 0.88), Drop(2.14, low, high, 64, 1.0), 2.0, 90, ()).holds is holds


def test_a_layer_that_parts_fails_whatever_is_predicted():
    parity = Parity(None, (0.9, 0.9), Drop(0.0, -0.1, 0.1, 64, 0.05), 2.0, 90, (Parting("model.3.conv", 4.2),))
    assert not parity.holds
    assert "model.3.conv is the first of 1 to give something else, by 4.2 steps" in str(parity)


def test_parity_needs_agreement(sides):
    reference, _, _ = sides
    with pytest.raises(EvaluationError, match="call compare"):
        check_parity(reference, reference, reference, (), 0.02)
