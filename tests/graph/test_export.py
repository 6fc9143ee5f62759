# SPDX-License-Identifier: AGPL-3.0-or-later
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ultra_mq.core.errors import ExportError
from ultra_mq.graph.autocast import decode_patterns
from ultra_mq.graph.export import export_onnx
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.graph.onnx_file import save_graph


def run(path, image):
    """Compute what stands in the graph: ONNX Runtime's own INT8 adds and concats round differently."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": image})[0]


@pytest.fixture(scope="module")
def image(batches):
    return next(iter(batches))["img"][:1]


def test_the_graph_carries_the_plan(qdq, qdq_fp16, plan):
    for graph in (qdq, qdq_fp16):
        assert quantized_layers(onnx.load(graph.path)) == set(plan.quantized)
        assert graph.faults == ()
        assert graph.size_bytes == graph.path.stat().st_size


def test_onnx_computes_what_torch_computes(qdq, quantized, image):
    with torch.no_grad():
        fake = quantized(image)[0].numpy()
    found = run(qdq.path, image.numpy())
    # Values on a rounding border may fall to the other side: a tenth of a pixel or of a probability on average.
    assert np.abs(found - fake).mean() < 0.1
    assert np.abs(found[:, 4:] - fake[:, 4:]).max() < 0.15


def test_fp16_keeps_boxes_within_a_tenth_of_a_pixel(qdq, qdq_fp16, image):
    fp32, fp16 = run(qdq.path, image.numpy()), run(qdq_fp16.path, image.numpy())
    confident = fp32[0, 4:].max(0) > 0.25
    assert confident.any()
    assert np.abs(fp32 - fp16)[0, :4, confident].mean() < 0.1
    assert fp16.dtype == np.float32


def test_fp16_graph_is_half_but_for_box_decode(qdq_fp16):
    graph = onnx.load(qdq_fp16.path)
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    biases = {node.name: types.get(node.input[2]) for node in convolutions if len(node.input) > 2}
    assert sum(kind == onnx.TensorProto.FLOAT16 for kind in biases.values()) == 87
    patterns = decode_patterns(graph)
    assert any("23" in pattern for pattern in patterns)


def test_metadata_survives(qdq, qdq_fp16):
    for graph in (qdq, qdq_fp16):
        metadata = {entry.key: entry.value for entry in onnx.load(graph.path).metadata_props}
        assert metadata["task"] == "detect"
        assert metadata["stride"] == "32"
        assert "triangle" in metadata["names"]


def test_yolo_runs_the_file(qdq, shapes):
    from ultralytics import YOLO

    picture = next((shapes.parent / "images" / "val").glob("*.jpg"))
    result = YOLO(qdq.path, task="detect").predict(str(picture), imgsz=160, verbose=False)[0]
    assert len(result.boxes) > 0


def test_a_fatal_fault_leaves_no_file(qdq, tmp_path):
    graph = onnx.load(qdq.path)
    del graph.metadata_props[:]
    with pytest.raises(ExportError, match="metadata is missing"):
        save_graph(graph, tmp_path / "bad.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_export_is_explained(tmp_path):
    with pytest.raises(ExportError, match="ONNX export failed"):
        export_onnx(torch.nn.Linear(1, 1), tmp_path / "x.onnx", imgsz=160)
    assert list(tmp_path.iterdir()) == []
