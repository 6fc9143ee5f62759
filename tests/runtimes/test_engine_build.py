# SPDX-License-Identifier: AGPL-3.0-or-later
import shutil
from pathlib import Path

import onnx
import pytest
from ultralytics import YOLO

from ultra_mq.core.errors import BackendError
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.runtimes.engine import BuildSettings, load_engine
from ultra_mq.runtimes.engine_build import build
from ultra_mq.runtimes.inspection import find_mismatches
from ultra_mq.runtimes.onnxruntime import OnnxRuntime
from ultra_mq.runtimes.worker import WorkerError

RTX = BuildSettings(target="rtx")


@pytest.fixture
def layer(plan):
    """A quantized layer, as module path and as ONNX node."""
    return "model.2.cv2.conv" if "model.2.cv2.conv" in plan.quantized else next(iter(plan.quantized))


def node_of(graph, layer):
    return next(
        n.name for n in graph.graph.node if n.op_type == "Conv" and layer.replace(".", "/") in n.name.replace(".", "/")
    )


def test_a_layer_that_does_not_build_stays_in_float(stand_in, qdq, layer, tmp_path, caplog):
    graph = onnx.load(str(qdq.path))
    stand_in(f"refuse={node_of(graph, layer)}")
    built = build(qdq.path, tmp_path / "m.engine", BuildSettings())
    assert built.engine.repaired == (layer,)
    assert built.onnx == tmp_path / "m-repaired.onnx"
    assert quantized_layers(graph) - quantized_layers(onnx.load(str(built.onnx))) == {layer}
    assert load_engine(tmp_path / "m.engine").repaired == (layer,)
    assert load_engine(tmp_path / "m.engine").onnx == "m-repaired.onnx"
    assert "building with it in float" in caplog.text


def test_without_repairs_it_says_what_to_do(stand_in, qdq, layer, tmp_path):
    stand_in(f"refuse={node_of(onnx.load(str(qdq.path)), layer)}")
    with pytest.raises(BackendError, match=r"No engine can be built.*Could not find any implementation.*--exclude"):
        build(qdq.path, tmp_path / "m.engine", BuildSettings(), max_repairs=0)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_is_no_reason_to_repair(stand_in, qdq, tmp_path):
    stand_in("crash-build")
    with pytest.raises(WorkerError, match="signal 11"):
        build(qdq.path, tmp_path / "m.engine", BuildSettings())
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_builds_is_not_touched(stand_in, qdq, tmp_path):
    built = build(qdq.path, tmp_path / "m.engine", BuildSettings())
    assert (built.onnx, built.engine.repaired) == (qdq.path, ())


def test_a_typed_runtime_gets_fp16_around_the_quantizers(needs_rtx, qdq, plan, batches, tmp_path):
    image = next(iter(batches))["img"][:1].numpy()
    built = build(qdq.path, tmp_path / "m.engine", RTX, image=image)
    assert built.onnx == qdq.path
    assert find_mismatches(plan.by_layer, built.engine.layer_types) == []


@pytest.fixture(scope="module")
def dynamic(weights, tmp_path_factory):
    """A graph with dynamic axes, as Ultralytics' own export makes it."""
    checkpoint = shutil.copy(weights, tmp_path_factory.mktemp("dynamic") / "m.pt")
    return Path(YOLO(checkpoint).export(format="onnx", dynamic=True, imgsz=160, opset=17, simplify=False))


def test_dynamic_axes_need_sizes(needs_rtx, dynamic, tmp_path):
    with pytest.raises(BackendError, match=r"has dynamic axes.*--min, --opt and --max"):
        build(dynamic, tmp_path / "m.engine", RTX)


def test_dynamic_axes(needs_rtx, dynamic, tmp_path):
    sizes = ((1, 3, 96, 96), (1, 3, 160, 160), (4, 3, 320, 320))
    built = build(dynamic, tmp_path / "m.engine", RTX.model_copy(update={"profile": sizes}))
    assert load_engine(built.engine.path).settings["profile"] == [list(shape) for shape in sizes]
    assert built.engine.layer_types["model.0.conv"] == "Half"


def test_a_dynamic_graph_on_onnx_runtime(dynamic):
    backend = OnnxRuntime(dynamic)
    assert backend.batch == 1
    assert len(backend.time(2)) == 2
