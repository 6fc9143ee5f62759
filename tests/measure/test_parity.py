# SPDX-License-Identifier: AGPL-3.0-or-later
"""Torch against ONNX: rounding passes, and whatever really differs is found and named."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ultra_mq.core.errors import EvaluationError
from ultra_mq.measure.accuracy import compare
from ultra_mq.measure.bootstrap import Drop
from ultra_mq.measure.evaluation import evaluate
from ultra_mq.measure.parity import Parity, Parting, check_parity, compare_layers
from ultra_mq.prepare import layer_of
from ultra_mq.runtimes.onnxruntime import OnnxRuntime


@pytest.fixture(scope="module")
def image(batches):
    return next(iter(batches))["img"][:1].numpy()


@pytest.fixture
def mutate(qdq, tmp_path):
    """Change the constant of an input of one node, or the node itself, in a copy of the graph."""

    def change(choose, edit):
        model = onnx.load(str(qdq.path))
        producers = {name: node for node in model.graph.node for name in node.output}
        node = next(node for node in model.graph.node if choose(node))
        edit(model.graph, producers, node)
        path = tmp_path / "mutated.onnx"
        onnx.save(model, str(path))
        return path

    return change


def set_constant(graph, producers, name, edit):
    """Edit a constant, wherever it stands, for one reader."""
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor)), name))
            return
    (value,) = producers[name].attribute
    value.t.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(value.t))))


def conv(name):
    return lambda node: node.op_type == "Conv" and layer_of(node.name) == name


def partings(module, path, image):
    return [found.name for found in compare_layers(module, path, image) if found.parts]


def test_the_graph_of_a_model_is_the_model(quantized, qdq, image, model):
    compared = compare_layers(quantized, qdq.path, image)
    assert not [found for found in compared if found.parts]
    assert max(found.steps for found in compared) < 0.01
    names = {found.name for found in compared}
    assert {layer.name for layer in (*model.quantizable, *model.kept)} <= names
    # Blocks check what stands between the layers; the head is the last one.
    assert {f"model.{number}" for number in range(len(quantized.model))} <= names


def test_a_wrong_scale_is_named(quantized, qdq, image, mutate, plan):
    layer = next(name for name in plan.quantized if name.startswith("model.8"))

    def wider(graph, producers, node):
        dequantize = producers[node.input[0]]
        set_constant(graph, producers, dequantize.input[1], lambda scale: np.float32(1.02) * scale)

    assert partings(quantized, mutate(conv(layer), wider), image)


def test_a_wrong_weight_is_named(quantized, qdq, image, mutate, plan):
    layer = next(name for name in plan.quantized if name.startswith("model.8"))

    def other(graph, producers, node):
        dequantize = producers[node.input[1]]
        name = dequantize.input[0]
        name = name if name not in producers or producers[name].op_type == "Constant" else producers[name].input[0]

        def flip(weight):
            changed = weight.copy()
            largest = np.unravel_index(np.abs(weight).argmax(), weight.shape)
            changed[largest] = -changed[largest]
            return changed

        set_constant(graph, producers, name, flip)

    found = partings(quantized, mutate(conv(layer), other), image)
    assert found[0] == layer


def test_a_wrong_bias_is_named(quantized, image, mutate):
    def shifted(graph, producers, node):
        set_constant(graph, producers, node.input[2], lambda bias: bias + np.float32(0.1) * np.abs(bias).max())

    assert "model.4.cv1.conv" in partings(quantized, mutate(conv("model.4.cv1.conv"), shifted), image)


@pytest.mark.parametrize(
    ("operator", "other"), [("Sigmoid", "Tanh"), ("MaxPool", "AveragePool"), ("Softmax", "LogSoftmax")]
)
def test_a_wrong_operator_is_named(quantized, image, mutate, operator, other):
    wanted = {"Sigmoid": "model.3", "MaxPool": "model.9", "Softmax": "model.10"}[operator]

    def replace(graph, producers, node):
        node.op_type = other
        if operator == "MaxPool":
            kept = [value for value in node.attribute if value.name in ("kernel_shape", "pads", "strides", "ceil_mode")]
            del node.attribute[:]
            node.attribute.extend(kept)

    path = mutate(lambda node: node.op_type == operator and layer_of(node.name).startswith(f"{wanted}"), replace)
    assert partings(quantized, path, image)[0] == wanted


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
