# SPDX-License-Identifier: AGPL-3.0-or-later
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ultra_mq.graph.lint import lint_graph, quantized_layers
from ultra_mq.prepare.names import layer_of

ZERO, SCALE = np.int8(0), np.float32(0.1)


def graph(
    *,
    cast=False,
    weight_dq=True,
    bias_dq=False,
    zero_point=ZERO,
    scale=SCALE,
    name="/model.0/conv/Conv",
):
    """One convolution behind Q/DQ, with a fault on request."""
    constants = {
        "scale": scale,
        "zero": zero_point,
        "wscale": np.float32(0.1),
        "wzero": np.int8(0),
        "w": np.ones((1, 3, 1, 1), np.float32),
        "wq": np.ones((1, 3, 1, 1), np.int8),
        "b": np.zeros(1, np.float32),
        "bq": np.zeros(1, np.int32),
        "bscale": np.float32(0.01),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"], name="/model.0/conv/q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="/model.0/conv/dq"),
        helper.make_node("DequantizeLinear", ["wq", "wscale", "wzero"], ["wdq"], name="/model.0/conv/wdq"),
        helper.make_node("DequantizeLinear", ["bq", "bscale"], ["bdq"], name="/model.0/conv/bdq"),
        helper.make_node("Cast", ["dq"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node(
            "Conv",
            ["cast" if cast else "dq", "wdq" if weight_dq else "w", "bdq" if bias_dq else "b"],
            ["output0"],
            name=name,
        ),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 4, 4])],
            [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 1, 4, 4])],
            [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
        )
    )
    for key in ("stride", "task", "names", "imgsz"):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, "x"
    return model


def rules(model):
    return {fault.rule for fault in lint_graph(model)}


def test_a_clean_graph():
    assert rules(graph()) == set()
    assert quantized_layers(graph()) == {"model.0.conv"}


@pytest.mark.parametrize(
    ("change", "rule", "fatal"),
    [
        ({"cast": True}, "cast-after-dq", False),
        ({"weight_dq": False}, "half-quantized", False),
        ({"bias_dq": True}, "bias-dq", True),
        ({"zero_point": np.uint8(0)}, "asymmetric", True),
        ({"zero_point": np.int8(3)}, "asymmetric", True),
        ({"scale": np.float16(1e-5)}, "subnormal-scale", False),
        ({"name": "/model.23/dfl/conv/Conv"}, "dfl-quantized", True),
    ],
)
def test_faults(change, rule, fatal):
    faults = {fault.rule: fault for fault in lint_graph(graph(**change))}
    assert rule in faults
    assert faults[rule].fatal is fatal
    assert faults[rule].message


def test_half_quantized_layers_do_not_count():
    assert quantized_layers(graph(weight_dq=False)) == set()


def test_input_name_and_metadata():
    model = graph()
    del model.metadata_props[:]
    model.graph.input[0].name = "x"
    assert {"input-name", "metadata"} <= rules(model)


def test_nonzero():
    model = graph()
    model.graph.node.append(onnx.helper.make_node("NonZero", ["output0"], ["n"], name="/nms/NonZero"))
    assert "data-dependent-shape" in rules(model)


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("/model.0/conv/Conv", "model.0.conv"),
        ("/model.23/cv3.0/cv3.0.1/cv3.0.1.0/conv/Conv", "model.23.cv3.0.1.0.conv"),
        ("/model.6/m.0/m/m.0/cv1/conv/Conv", "model.6.m.0.m.0.cv1.conv"),
        ("/model.10/m/m.0/ffn/ffn.1/conv/Conv", "model.10.m.0.ffn.1.conv"),
    ],
)
def test_layer_names(node, layer):
    assert layer_of(node) == layer
