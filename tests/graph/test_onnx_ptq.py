# SPDX-License-Identifier: AGPL-3.0-or-later
import json

import numpy as np
import onnx
import pytest

from ultra_mq.core.errors import DataError, ExportError, PlanError
from ultra_mq.graph.autocast import convert_to_fp16
from ultra_mq.graph.export import export_onnx
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.graph.onnx_ptq import PtqSettings, hot_spots, load_calibration, ptq, ptq_plan, save_calibration
from ultra_mq.plan.precision_plan import uniform_plan
from ultra_mq.prepare.data import load_image
from ultra_mq.quantization.apply import apply_formats

OPERANDS = {"Conv": 2, "MaxPool": 1, "Resize": 1}
"""How many inputs of an operator are data, where not all are."""


@pytest.fixture(scope="module")
def fp32(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("fp32") / "fp32.onnx"
    export_onnx(model.module, path, 160)
    return path


@pytest.fixture(scope="module")
def pixels(batches, tmp_path_factory):
    return save_calibration(batches, tmp_path_factory.mktemp("calibration") / "c.npy")


@pytest.fixture(scope="module")
def nohead(fp32, pixels, tmp_path_factory):
    return ptq(fp32, tmp_path_factory.mktemp("ptq") / "int8.onnx", pixels, PtqSettings())


def test_the_head_stays_in_float(nohead):
    layers = quantized_layers(onnx.load(str(nohead.path)))
    assert {"model.0.conv", "model.10.m.0.attn.qkv.conv", "model.22.cv2.conv"} <= layers
    assert not {name for name in layers if ".dfl." in name or name.endswith(".2")}


def test_our_placement_quantizes_what_modelopts_onnx_path_does(nohead, model, calibration, tmp_path):
    """Every convolution, add, concat and pool that has a quantized operand there has all of them quantized here."""
    plan = uniform_plan(model, "int8")
    ours = onnx.load(export_onnx(apply_formats(model, plan.quantized, calibration), tmp_path / "ours.onnx", 160).path)
    theirs = onnx.load(nohead.path)

    def touched(graph, combine):
        makers = {output: node.op_type for node in graph.graph.node for output in node.output}
        return {
            node.name
            for node in graph.graph.node
            if node.op_type in ("Conv", "Add", "Concat", "MaxPool", "Resize")
            and combine(
                makers.get(name) == "DequantizeLinear" for name in list(node.input)[: OPERANDS.get(node.op_type)]
            )
        }

    there, here = touched(theirs, any), touched(ours, all)
    assert len(there) > 90
    assert there <= here
    assert {name for name in here - there if not name.endswith("Concat")} <= {"/model.10/m/m.0/attn/Add"}


def test_a_plan_is_carried_out_by_modelopts_onnx_path(fp32, pixels, model, plan, tmp_path):
    graph = ptq_plan(fp32, tmp_path / "plan.onnx", pixels, plan.quantized)
    assert quantized_layers(onnx.load(graph.path)) == set(plan.quantized)


def test_modelopts_onnx_path_refuses_a_mixture(fp32, pixels, model, tmp_path):
    names = [layer.name for layer in model.quantizable]
    mixed = {names[3]: "int8", names[4]: "fp8"}
    with pytest.raises(PlanError, match="one format beside float, and the plan has fp8, int8"):
        ptq_plan(fp32, tmp_path / "plan.onnx", pixels, mixed)


def test_ultralytics_can_run_the_file(nohead, fp32):
    metadata = {entry.key: entry.value for entry in onnx.load(str(nohead.path)).metadata_props}
    assert metadata == {entry.key: entry.value for entry in onnx.load(str(fp32)).metadata_props}


def test_the_settings_lie_beside_the_file(nohead):
    settings = json.loads(nohead.path.with_suffix(".json").read_text())
    assert (settings["method"], settings["preset"], settings["calibration_images"]) == ("max", "nohead", 8)


def test_the_name_says_the_settings():
    assert PtqSettings().tag == "int8-max-nohead"
    assert PtqSettings("fp8", "entropy", "everything", exclude=("a",)).tag == "fp8-entropy-everything-custom"


def test_only_the_named_nodes(fp32, pixels, tmp_path):
    settings = PtqSettings(nodes=(r".*/model.0/.*",), exclude_ops=("Add",))
    graph = ptq(fp32, tmp_path / "x.onnx", pixels, settings)
    assert quantized_layers(onnx.load(str(graph.path))) == {"model.0.conv"}


def test_excluded_nodes(fp32, pixels, tmp_path):
    graph = ptq(fp32, tmp_path / "x.onnx", pixels, PtqSettings(exclude=(r".*/model.1/conv/Conv",), ops=("Conv",)))
    layers = quantized_layers(onnx.load(str(graph.path)))
    assert "model.1.conv" not in layers
    assert "model.2.cv1.conv" in layers


def test_fp8(fp32, pixels, tmp_path):
    graph = onnx.load(str(ptq(fp32, tmp_path / "x.onnx", pixels, PtqSettings(mode="fp8")).path))
    types = {tensor.data_type for tensor in graph.graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in types


def test_the_extreme_preset_quantizes_what_runtimes_hate(fp32, pixels, tmp_path):
    graph = onnx.load(str(ptq(fp32, tmp_path / "x.onnx", pixels, PtqSettings(preset="extreme")).path))
    dequantized = {out for node in graph.graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    types = {node.op_type for node in graph.graph.node if set(node.input) & dequantized}
    assert {"Conv", "Sigmoid", "Concat", "Softmax"} <= types


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PtqSettings(exclude=("nothing_is_called_so",)), "No node of .* matches 'nothing_is_called_so'"),
        (PtqSettings(ops=("LSTM",)), "quantized nothing|cannot quantize"),
    ],
)
def test_settings_that_cannot_work(fp32, pixels, tmp_path, settings, message):
    with pytest.raises(ExportError, match=message):
        ptq(fp32, tmp_path / "x.onnx", pixels, settings)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_file_is_refused(nohead, pixels, tmp_path):
    with pytest.raises(ExportError, match="is quantized already"):
        ptq(nohead.path, tmp_path / "x.onnx", pixels, PtqSettings())


def test_calibration_tensors(batches, pixels, tmp_path):
    again = save_calibration(batches, tmp_path / "c.npy")
    assert np.array_equal(again, pixels)
    assert np.array_equal(load_calibration(tmp_path / "c.npy", 160), pixels)
    assert len((tmp_path / "c.txt").read_text().splitlines()) == len(pixels) == 8
    with pytest.raises(DataError, match=r"float32 \(8, 3, 160, 160\); needed is float32 \(N, 3, 320, 320\)"):
        load_calibration(tmp_path / "c.npy", 320)
    with pytest.raises(DataError, match="cannot be read"):
        load_calibration(tmp_path / "gone.npy", 160)


def test_hot_spots_are_box_decode_and_what_was_excluded(fp32, data, tmp_path):
    image = load_image(data.calibration.images[0], 160)
    assert (image.shape, image.dtype) == ((1, 3, 160, 160), np.float32)
    assert 0.5 < image.max() <= 1
    spots = hot_spots(onnx.load(str(convert_to_fp16(fp32, tmp_path / "a.onnx", image).path)))
    assert "/model.23/dfl/conv/Conv" in spots
    assert all(name.startswith("/model.23/") for name in spots)
    excluded = convert_to_fp16(fp32, tmp_path / "b.onnx", image, exclude=["/model.0/conv/Conv"])
    assert "/model.0/conv/Conv" in hot_spots(onnx.load(str(excluded.path)))


def test_bf16(fp32, data, tmp_path):
    image = load_image(data.calibration.images[0], 160)
    graph = onnx.load(str(convert_to_fp16(fp32, tmp_path / "a.onnx", image, precision="bf16").path))
    assert onnx.TensorProto.BFLOAT16 in {tensor.data_type for tensor in graph.graph.initializer}
