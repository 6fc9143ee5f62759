# SPDX-License-Identifier: AGPL-3.0-or-later
"""Builder failures that were seen with TensorRT 8.6 on an H200, in its own words."""

import numpy as np
import onnx
import pytest

from ultra_mq.graph.export import export_onnx
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.graph.repair import find_failed_nodes, keep_in_float, layers_of
from ultra_mq.prepare.model import uniform_formats
from ultra_mq.quantization.apply import apply_formats
from ultra_mq.runtimes.onnxruntime import OnnxRuntime

PE = "/model.10/m/m.0/attn/pe/conv/Conv"
NAMED = (
    "10: Could not find any implementation for node model.10.m.0.attn.pe.conv.weight + "
    f"model.10.m.0.attn.pe.conv.weight_QuantizeLinear + {PE} + /model.10/m/m.0/attn/Add. 10: "
    "[optimizer.cpp::computeCosts::3873] Error Code 10: Internal Error (Could not find any implementation for node.)"
)
NAMELESS = (
    "2: Assertion !n->candidateRequirements.empty() failed. All of the candidates were removed, which points to the "
    "node being incorrectly marked as an int8 node."
)


@pytest.fixture(scope="module")
def int8(model, calibration, tmp_path_factory):
    """Every layer in INT8, attention included: the graph that TensorRT 8.6 does not build."""
    module = apply_formats(model, uniform_formats(model, "int8"), calibration)
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    export_onnx(module, path, 160)
    return path


@pytest.fixture(scope="module")
def graph(int8):
    return onnx.load(str(int8))


def test_a_node_that_is_named(graph):
    assert find_failed_nodes(graph, NAMED, "") == [PE, "/model.10/m/m.0/attn/Add"]


def test_a_quantizer_that_was_moved_through_a_reshape(graph):
    assert find_failed_nodes(graph, NAMELESS, "") == [PE]


def test_after_that_all_of_attention(graph):
    repaired = keep_in_float(graph, [PE])
    found = layers_of(find_failed_nodes(repaired, NAMELESS, ""))
    assert found == ["model.10.m.0.attn.qkv.conv", "model.10.m.0.attn.proj.conv"]


def test_the_node_the_builder_was_busy_with(graph):
    log = (
        "1.0 V =============== Computing costs for /model.0/conv/Conv\n2.0 V Computing costs for /model.1/conv/Conv + x"
    )
    assert find_failed_nodes(graph, "out of luck", log) == ["/model.1/conv/Conv"]
    assert find_failed_nodes(graph, "out of luck", "") == []


def test_a_region_that_is_named_by_its_ends(graph):
    block = "/model.10/m/m.0/attn"
    message = f"Could not find any implementation for node {{ForeignNode[{block}/Split...{block}/Add]}}"
    assert PE in find_failed_nodes(graph, message, "")


def test_a_name_is_not_found_inside_another(graph):
    assert find_failed_nodes(graph, "node /model.1/conv/Convolution and x/model.2/cv1/conv/Conv", "") == []


def test_only_the_named_layer_becomes_float(graph, int8, image, tmp_path):
    repaired = keep_in_float(graph, [PE])
    assert quantized_layers(graph) - quantized_layers(repaired) == {"model.10.m.0.attn.pe.conv"}
    assert quantized_layers(graph) > quantized_layers(repaired)
    onnx.checker.check_model(repaired)
    onnx.save(repaired, str(tmp_path / "repaired.onnx"))
    before, after = (OnnxRuntime(path).infer(image)[0] for path in (int8, tmp_path / "repaired.onnx"))
    assert not np.array_equal(before, after)
    assert np.abs(before - after)[:, 4:].max() < 0.2


def test_weights_that_are_stored_as_integers():
    weight = np.array([[[[1.0]]], [[[-2.0]]]], np.float32)
    scale = np.array([0.5, 0.25], np.float32)
    helper = onnx.helper
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s"], ["q"], "Q"),
        helper.make_node("DequantizeLinear", ["q", "s"], ["x"], "DQ"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], "WDQ", axis=0),
        helper.make_node("Conv", ["x", "wf"], ["y"], "/a/Conv"),
    ]
    values = {
        "s": np.float32(0.1), "w": (weight / scale[:, None, None, None]).astype(np.int8), "ws": scale,
        "wz": np.zeros(2, np.int8),
    }  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("images", 1, [1, 1, 2, 2])], [value("y", 1, [1, 2, 2, 2])],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()],
    )  # fmt: skip
    repaired = keep_in_float(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), ["/a/Conv"])
    assert [node.op_type for node in repaired.graph.node] == ["Conv"]
    (left,) = repaired.graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(left), weight)


@pytest.fixture
def image(batches):
    return next(iter(batches))["img"][:1].numpy()
