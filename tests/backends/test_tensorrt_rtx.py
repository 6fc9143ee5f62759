# SPDX-License-Identifier: AGPL-3.0-or-later
import json

import pytest
from ultralytics.nn.backends.base import BaseBackend

from ultra_mq.backends import tensorrt_rtx
from ultra_mq.backends.onnxruntime import OnnxRuntime
from ultra_mq.backends.tensorrt_rtx import build_engine, read_layer_types
from ultra_mq.errors import BackendError

needs_rtx = pytest.mark.skipif(tensorrt_rtx.why_unavailable() is not None, reason=str(tensorrt_rtx.why_unavailable()))


@needs_rtx
def test_every_layer_runs_in_the_precision_of_the_plan(qdq_fp16, plan, tmp_path):
    metadata = OnnxRuntime(qdq_fp16.path).metadata
    engine = build_engine(qdq_fp16.path, tmp_path / "m.engine", metadata)
    expected = {layer.name: "Int8" if layer.format == "int8" else "Half" for layer in plan.layers}
    expected["model.23.dfl.conv"] = "Float"  # part of box decode, kept in FP32 on purpose
    assert engine.layer_types == expected
    assert {"Int8", "Half"} <= set(engine.layer_types.values())
    assert engine.size_bytes == (tmp_path / "m.engine").stat().st_size


@needs_rtx
def test_ultralytics_reads_the_header(qdq_fp16, tmp_path):
    metadata = OnnxRuntime(qdq_fp16.path).metadata
    build_engine(qdq_fp16.path, tmp_path / "m.engine", metadata)
    offset, header = BaseBackend.engine_header(tmp_path / "m.engine")
    assert header == json.loads(json.dumps(metadata))
    assert offset > 4


@needs_rtx
def test_a_graph_that_does_not_parse(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(BackendError, match="cannot parse"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", {})
    assert not (tmp_path / "x.engine").exists()


@needs_rtx
def test_an_unknown_gpu(qdq_fp16, tmp_path):
    with pytest.raises(BackendError, match=r"compute capability 9\.9.*SM89"):
        build_engine(qdq_fp16.path, tmp_path / "x.engine", {}, compute_capability="9.9")


def test_without_the_package(monkeypatch, qdq_fp16, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'ultra-mq[tensorrt-rtx]'" in tensorrt_rtx.why_unavailable()
    with pytest.raises(BackendError, match="not installed"):
        build_engine(qdq_fp16.path, tmp_path / "x.engine", {})


def test_layer_table():
    row = (
        "Name: {name}, LayerType: {kind}, Inputs: [ {{ Name: a, Datatype: Int8 }}], "
        "Constants: [ {{ Name: w, Dimensions: [1], Datatype: {type}, Format: x }}, {{ Name: b, Datatype: Float }}], "
        "Outputs: [], Metadata: [ONNX Layer: /model.0/conv/Conv]"
    )
    table = "Layers:\n" + "\n".join(
        [row.format(name="c", kind="correlation", type="Int8"), row.format(name="k", kind="kgen", type="Half")]
    )
    assert read_layer_types(["noise", table]) == {"model.0.conv": "Int8"}
    assert read_layer_types([]) == {}
