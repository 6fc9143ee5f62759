# SPDX-License-Identifier: AGPL-3.0-or-later
"""Torch against ONNX, layer by layer: rounding passes, and whatever really differs is found and named."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ultra_mq.measure.layer_parity import compare_layers
from ultra_mq.prepare import layer_of


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
