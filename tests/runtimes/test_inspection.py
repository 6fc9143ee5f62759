# SPDX-License-Identifier: AGPL-3.0-or-later
import dataclasses
import json
from pathlib import Path

import pytest

from ultra_mq.plan.precision_plan import uniform_plan
from ultra_mq.runtimes.inspection import executed_types, find_mismatches, layer_times, read_inspector, read_rtx_table


@pytest.fixture(scope="module")
def trt86():
    """A part of what TensorRT 8.6 said of a real engine on an H200."""
    return (Path(__file__).parent.parent / "data" / "inspector-trt-8.6.json").read_text()


def test_tensorrt_8(trt86):
    with pytest.raises(json.JSONDecodeError):
        json.loads(trt86)  # raw control characters
    layers = {layer.name: layer for layer in read_inspector(trt86)}
    fused = next(layer for name, layer in layers.items() if name.startswith("model.1.conv.weight"))
    assert fused.precision == "Int8"
    assert fused.nodes == ("/model.1/conv/Conv", "/model.1/act/Sigmoid", "/model.1/act/Mul")
    assert layers["/model.10/m/m.0/attn/pe/conv/Conv + /model.10/m/m.0/attn/Add"].precision == "Float"
    assert layers["/model.10/m/m.0/attn/Reshape"].reformat
    copy = layers["Reformatting CopyNode for Input Tensor 0 to /model.10/m/m.0/attn/Reshape"]
    assert copy.reformat
    assert copy.precision == "Half"
    assert executed_types(layers.values()) == {
        "model.1.conv": "Int8",
        "model.10.m.0.attn.pe.conv": "Float",
        "model.23.dfl.conv": "Float",
        "model.23.cv2.0.2": "Float",
    }


def test_tensorrt_11():
    """The field names of 11, where one field for layout and type became two; no real engine of 11 was at hand."""
    tensor = {"Name": "x", "Dimensions": [1], "Format": "NC/32HW32", "Datatype": "INT8"}
    layer = {"Name": "conv_myl", "LayerType": "gemm", "Inputs": [tensor], "Outputs": [tensor],
             "Metadata": "[ONNX Layer: /model.0/conv/Conv]\x1e[ONNX Layer: /model.0/act/Mul]"}  # fmt: skip
    (found,) = read_inspector(json.dumps({"Layers": [layer], "I/O Tensors": []}), [("conv_myl", 0.25)])
    assert (found.precision, found.ms) == ("Int8", 0.25)
    assert executed_types([found]) == {"model.0.conv": "Int8"}
    assert layer_times([found]) == {"model.0.conv": 0.25}


@pytest.mark.parametrize(
    ("datatype", "precision"),
    [("Row major linear FP16 format", "Half"), ("Half NCHW", "Half"), ("FP8", "FP8"), ("BF16", "BF16"), ("Int32", "")],
)
def test_types(datatype, precision):
    layer = {"Name": "a", "LayerType": "b", "Inputs": [{"Format/Datatype": datatype}]}
    assert read_inspector(json.dumps({"Layers": [layer]}))[0].precision == precision


def test_an_engine_without_details():
    assert [layer.name for layer in read_inspector('{"Layers": ["a", "b"]}')] == ["a", "b"]


def test_rtx_table():
    row = (
        "Name: {name}, LayerType: {kind}, Inputs: [ {{ Name: a, Datatype: Int8 }}], "
        "Constants: [ {{ Name: w, Dimensions: [1], Datatype: {type}, Format: x }}, {{ Name: b, Datatype: Float }}], "
        "Outputs: [], Metadata: [ONNX Layer: /model.0/conv/Conv]"
    )
    rows = [row.format(name="c", kind="correlation", type="Int8"), row.format(name="k", kind="kgen", type="Half")]
    assert executed_types(read_rtx_table("Layers:\n" + "\n".join(rows))) == {"model.0.conv": "Int8"}
    assert read_rtx_table("") == ()


def test_mismatches(model):
    plan = uniform_plan(model, "int8")
    types = {layer.name: "Int8" for layer in model.quantizable} | {layer.name: "Half" for layer in model.kept}
    types["model.23.dfl.conv"] = "Float"
    assert find_mismatches(plan.by_layer, types) == []
    assert find_mismatches(plan.by_layer, {**types, "model.0.conv": "Half"}) == [("model.0.conv", "int8", "Half")]
    del types["model.1.conv"]
    assert find_mismatches(plan.by_layer, types) == [("model.1.conv", "int8", "missing")]
    kept = dataclasses.replace(plan, layers=tuple(layer for layer in plan.layers if layer.why == "kept"))
    # No kernel is named after a float layer that was fused into another kind, as a classifier's last one is.
    assert find_mismatches(kept.by_layer, {"model.23.dfl.conv": "Half"}) == []
    assert find_mismatches(kept.by_layer, {"model.23.cv2.0.2": "Int8"}) == [("model.23.cv2.0.2", "fp16", "Int8")]
