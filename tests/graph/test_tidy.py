# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests of tidying a Q/DQ graph."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ultra_mq.graph.tidy import tidy_qdq


def pair(name, source, scale, result):
    scale = numpy_helper.from_array(np.float32(scale), f"{name}_scale")
    zero = numpy_helper.from_array(np.int8(0), f"{name}_zero")
    nodes = [
        helper.make_node("QuantizeLinear", [source, scale.name, zero.name], [f"{name}_q"], f"{name}/QuantizeLinear"),
        helper.make_node("DequantizeLinear", [f"{name}_q", scale.name, zero.name], [result], f"{name}/Dequantize"),
    ]
    return nodes, [scale, zero]


@pytest.fixture
def messy():
    """A split whose halves are cast and quantized again for every reader."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 4])
    first, weights = pair("first", "a_cast", 0.5, "a1")
    second, more = pair("second", "a", 0.5, "a2")
    third, most = pair("third", "a", 0.25, "a3")
    nodes = [
        helper.make_node("Split", ["images"], ["a", "b"], "split", axis=1, num_outputs=2),
        helper.make_node("Cast", ["a"], ["a_cast"], "cast", to=TensorProto.FLOAT),
        *first, *second, *third,
        helper.make_node("Sum", ["a1", "a2", "a3", "b"], ["output"], "sum"),
    ]  # fmt: skip
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph(nodes, "messy", [image], [output], [*weights, *more, *most])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def count(model, kind):
    return sum(node.op_type == kind for node in model.graph.node)


def test_equal_pairs_become_one_and_idle_casts_go(messy):
    tidied = tidy_qdq(messy)
    onnx.checker.check_model(tidied, full_check=True)
    assert count(tidied, "Cast") == 0
    assert count(tidied, "QuantizeLinear") == count(tidied, "DequantizeLinear") == 2
    total = tidied.graph.node[-1]
    assert total.input[0] == total.input[1] != total.input[2]


def test_the_values_stay_the_same(messy):
    def run(model):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"images": np.float32([[0.3, 0.8, -1.4, 90]])})[0]

    assert np.array_equal(run(tidy_qdq(messy)), run(messy))


def test_a_cast_that_converts_stays(messy):
    cast = next(node for node in messy.graph.node if node.op_type == "Cast")
    cast.attribute[0].i = TensorProto.DOUBLE
    tidied = tidy_qdq(messy)
    assert count(tidied, "Cast") == 1
    assert count(tidied, "QuantizeLinear") == 3


def test_an_exported_graph_has_one_pair_a_tensor_and_scale(qdq):
    graph = onnx.load(qdq.path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    constants |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    pairs = [
        (node.input[0], constants[node.input[1]].tobytes()) for node in graph.node if node.op_type == "QuantizeLinear"
    ]
    assert len(pairs) == len(set(pairs))
    assert not any(node.op_type == "Cast" for node in graph.node)


def test_a_value_without_a_type_is_no_remark(messy, caplog):
    import onnx_ir as ir

    model = ir.from_proto(messy)
    for node in model.graph:
        node.outputs[0].type = None
        node.outputs[0].shape = ir.Shape([1, 4])
    ir.to_proto(model)
    assert caplog.records == []
