# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests of the audit: a well-placed graph is clean, and each fault put into it is found where it stands."""

import copy

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ultra_mq.core.kernels import KernelTime
from ultra_mq.graph.audit import audit_graph
from ultra_mq.graph.export import export_onnx
from ultra_mq.prepare.model import uniform_formats
from ultra_mq.quantization.apply import apply_formats


def export(model, formats, calibration, folder, placement="runtime"):
    path = folder / "graph.onnx"
    export_onnx(apply_formats(model, formats, calibration, placement=placement), path, 160)
    return onnx.load(path)


@pytest.fixture(scope="module")
def clean(model, calibration, tmp_path_factory):
    return export(model, uniform_formats(model, "int8"), calibration, tmp_path_factory.mktemp("audit"))


@pytest.fixture
def graph(clean):
    return copy.deepcopy(clean)


def node(graph, name):
    return next(found for found in graph.graph.node if found.name == name)


def producer(graph, name):
    return next(found for found in graph.graph.node if name in found.output)


def rules(audit):
    return [(finding.rule, finding.where) for finding in audit.findings]


def test_our_placement_is_clean(clean, model):
    found = audit_graph(clean, uniform_formats(model, "int8"))
    assert found.findings == ()
    assert found.counts == {
        "layer": (81, 88), "residual add": (14, 17), "concat": (17, 21), "pool": (3, 3), "upsampling": (2, 2),
    }  # fmt: skip


def test_layers_alone_leave_every_join_in_float(model, calibration, tmp_path):
    found = audit_graph(export(model, uniform_formats(model, "int8"), calibration, tmp_path, "torch"))
    assert found.counts["layer"] == (81, 88)
    assert {rule for rule, _ in rules(found)} == {"float-join"}
    where = [where for _, where in rules(found)]
    # SPPF pools alone, and the head joins in float on purpose.
    assert (sum("concat" in w for w in where), sum("add" in w for w in where)) == (17, 14)
    assert "model.2.m.0 (residual add)" in where
    assert not any(w.startswith("model.23") for w in where)


def test_a_float_operand_is_named(graph):
    concat = node(graph, "/model.12/Concat")
    concat.input[1] = producer(graph, producer(graph, concat.input[1]).input[0]).input[0]
    assert rules(audit_graph(graph)) == [("float-operand", "model.12 (concat)")]


def test_unequal_scales_around_a_concat_are_found(graph):
    concat = node(graph, "/model.12/Concat")
    dequantize = producer(graph, concat.input[0])
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other_scale"))
    for end in (dequantize, producer(graph, dequantize.input[0])):
        end.input[1] = "other_scale"
    assert ("unequal-scales", "model.12 (concat)") in rules(audit_graph(graph))


def test_a_float_layer_among_quantized_ones_is_an_island(model, calibration, tmp_path):
    choice = {name: "int8" for name in uniform_formats(model, "int8") if name != "model.3.conv"}
    graph = export(model, choice, calibration, tmp_path)
    assert rules(audit_graph(graph, choice)) == [("island", "model.3.conv")]
    assert rules(audit_graph(graph, uniform_formats(model, "int8"))) == [
        ("planned-in-float", "model.3.conv"), ("island", "model.3.conv"),
    ]  # fmt: skip


def test_a_pair_that_no_layer_needs_is_dangling(graph):
    sigmoid = node(graph, "/model.0/act/Sigmoid")
    zero, scale = numpy_helper.from_array(np.int8(0), "z"), numpy_helper.from_array(np.float32(0.1), "s")
    graph.graph.initializer.extend([zero, scale])
    pair = [
        helper.make_node("QuantizeLinear", [sigmoid.input[0], "s", "z"], ["q"], "/model.0/extra/QuantizeLinear"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], "/model.0/extra/DequantizeLinear"),
    ]
    sigmoid.input[0] = "dq"
    graph.graph.node.extend(pair)
    found = audit_graph(graph).findings
    assert [(finding.rule, finding.where, "Sigmoid" in finding.message) for finding in found] == [
        ("dangling", "model.0.extra", True)
    ]


def test_findings_carry_their_measured_time_the_costly_first(model, calibration, tmp_path):
    graph = export(model, uniform_formats(model, "int8"), calibration, tmp_path, "torch")
    layer, copy_in = KernelTime(("/model.12/Concat",), 0.004), KernelTime(("/model.12/Concat",), 0.003)
    found = audit_graph(graph, kernels=(layer, copy_in)).findings
    assert found[0].where == "model.12 (concat)"
    assert found[0].ms == pytest.approx(0.007)
    assert all(finding.ms == 0 for finding in found[1:])
