# SPDX-License-Identifier: AGPL-3.0-or-later
"""Inputs like those that users bring, kind by kind: they work, or are refused in one sentence before work starts."""

import contextlib
import functools
import http.server
import json
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import yaml
from click.testing import CliRunner
from shapes import NAMES, draw_picture, make_dataset
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

import ultra_mq
from ultra_mq.cli.run_commands import main
from ultra_mq.graph.export import export_onnx
from ultra_mq.plan.precision_plan import load_plan
from ultra_mq.prepare.model import load_model, prepare_model
from ultra_mq.session.recipe import make_recipe
from ultra_mq.session.session import open_session

QUICK = [
    "imgsz=96", "engine.target=none", "bench.rounds=0", "calibration.images=4", "sensitivity.images=4",
    "calibration.bias_correction=4",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command line in a folder of its own: exit code and output on one line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert "Traceback" not in done.output
        json_only = "--json" in arguments and done.exit_code == 0
        return done.exit_code, done.stdout if json_only else " ".join(done.output.split())

    return call


@pytest.fixture
def autoquant(run, tmp_path):
    def call(weights, data, *overrides, bits=8):
        found = [*QUICK, *overrides, f"project={tmp_path}", "name=run", "--json"]
        code, output = run("autoquant", "--bits", bits, weights, *([f"data={data}"] if data else []), *found)
        return code, output, tmp_path / "run"

    return call


def pictures(folder, sub, count, seed, suffix=".jpg", change=lambda picture: picture):
    for kind in ("images", "labels"):
        (folder / kind / sub).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture, boxes = draw_picture(np.random.default_rng((seed, index)))
        cv2.imwrite(str(folder / "images" / sub / f"{index:05d}{suffix}"), change(picture))
        lines = "".join(f"{cls} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for cls, x, y, w, h in boxes)
        (folder / "labels" / sub / f"{index:05d}.txt").write_text(lines)


def described(path, **keys):
    document = {"path": str(path.parent), "train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES))}
    path.write_text(yaml.safe_dump({**document, **keys}, sort_keys=False))
    return path


# Blocks of a user's own


class ResidualBlock(nn.Module):
    """Adds, concatenates and pools by functions."""

    def __init__(self, channels):
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 1)
        self.two = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x):
        pooled = torch.nn.functional.max_pool2d(x, 3, 1, 1)
        return x + self.two(torch.cat([self.one(x), pooled], 1))


class Sum(nn.Module):
    def forward(self, one, other):
        return one + other


class ModuleBlock(nn.Module):
    """Adds by a module."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.add = Sum()

    def forward(self, x):
        return self.add(x, self.conv(x))


def customised(weights, kind):
    """The small network with a user's own block behind its third layer."""
    yolo = YOLO(weights)
    network = yolo.model.float().eval()
    old = network.model[2]
    torch.manual_seed(0)
    new = nn.Sequential(old, kind(32), nn.Conv2d(32, 32, 1))
    new.f, new.i, new.type, new.np = old.f, old.i, "Sequential", 0
    network.model[2] = new
    return yolo


@pytest.mark.parametrize(("kind", "joins"), [(ResidualBlock, {"cat0", "add0", "pool0"}), (ModuleBlock, {"add.add0"})])
def test_joins_of_own_blocks_are_quantized(small_weights, shapes, tmp_path, kind, joins):
    yolo = customised(small_weights, kind)
    settings = {"imgsz": 96, "calibration": {"images": 4, "bias_correction": 0}}
    quantized = ultra_mq.quantize(yolo, bits=8, data=shapes, **settings)
    enabled = {name for name, child in quantized.model.named_modules() if getattr(child, "is_enabled", False)}
    found = {name.removeprefix("model.2.1.").partition("_quantizer")[0] for name in enabled if "model.2.1." in name}
    assert joins <= found
    graph = export_onnx(quantized.model, tmp_path / "own.onnx", 96)
    assert sum(node.op_type == "QuantizeLinear" for node in onnx.load(graph.path).graph.node) > 10
    quantized.save(tmp_path / "own.pt")
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (
            network.float().eval()(image)[0] for network in (quantized.model, YOLO(tmp_path / "own.pt").model)
        )
    assert torch.allclose(before, after, atol=1e-2 * float(before.abs().max()))


def test_pools_by_a_function_of_ultralytics_own(tmp_path):
    """YOLOv9's ADown pools by a function; it ended in a KeyError of a quantizer that no block makes."""
    from ultra_mq.prepare.placement import place_joins
    from ultra_mq.quantization.blocks import register_block

    torch.manual_seed(0)
    (tmp_path / "down.yaml").write_text(
        "nc: 5\nbackbone: [[-1, 1, Conv, [16, 3, 2]], [-1, 1, ADown, [32]], [-1, 1, Conv, [32, 3, 2]]]\n"
        "head: [[[2], 1, Detect, [nc]]]\n"
    )
    model = prepare_model(YOLO(tmp_path / "down.yaml", task="detect"))
    joins = place_joins(model.flow, {layer.name: "int8" for layer in model.quantizable})
    assert "model.1.pool0_quantizer" in joins
    assert register_block(type(model.module.model[1]))


@pytest.mark.parametrize("name", ["rtdetr-l.yaml", "yolov8s-worldv2.yaml", "yoloe-11s.yaml"])
def test_heads_that_cannot_be_compared_are_refused_before_work(name, tmp_path):
    from ultralytics import RTDETR, YOLOE, YOLOWorld

    kind = RTDETR if "rtdetr" in name else YOLOWorld if "world" in name else YOLOE
    with pytest.raises(ultra_mq.UltraMQError, match="whose outputs the precision search cannot compare"):
        prepare_model(kind(name))


# Data


def test_annotations_that_name_classes_otherwise_cost_the_table_alone(autoquant, small_weights, tmp_path):
    data = make_dataset(tmp_path / "cvat", 6, 4)
    images = sorted((tmp_path / "cvat/images/val").glob("*.jpg"))
    (tmp_path / "cvat/annotations").mkdir()
    document = {
        "images": [{"id": index, "file_name": path.name} for index, path in enumerate(images)],
        "categories": [{"id": index, "name": name.capitalize()} for index, name in enumerate(NAMES)],
        "annotations": [],
    }
    (tmp_path / "cvat/annotations/instances_default.json").write_text(json.dumps(document))
    (tmp_path / "cvat/annotations/instances_a.json").write_text("[]")
    code, _, folder = autoquant(small_weights, data)
    assert code == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["variants"][0]["accuracy"]["coco"] is None
    assert sum("There is no COCO table" in warning for warning in results["warnings"]) == 1


def test_channels_that_differ_are_said_before_work(autoquant, tmp_path, small_weights, shapes):
    gray = tmp_path / "gray"
    for sub, count in (("train", 6), ("val", 4)):
        pictures(gray, sub, count, 1, ".png", lambda picture: cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    data = described(gray / "gray.yaml", channels=1)
    yolo = YOLO(small_weights)
    old = yolo.model.float()
    network = DetectionModel({**old.yaml, "channels": 1}, ch=1, nc=5, verbose=False)
    network.names, network.args, network.task, network.stride = old.names, old.args, "detect", old.stride
    yolo.model = network
    yolo.save(tmp_path / "gray.pt")
    code, output, folder = autoquant(tmp_path / "gray.pt", shapes)
    assert code == 2
    assert "takes images of 1 channels" in output
    assert not folder.exists()
    assert autoquant(tmp_path / "gray.pt", data)[0] == 0


def test_a_number_of_classes_that_differs_is_said_before_work(autoquant, small_weights, shapes):
    data = described(shapes.parent / "eight.yaml", names={index: f"class {index}" for index in range(8)})
    code, output, folder = autoquant(small_weights, data)
    assert (code, folder.exists()) == (2, False)
    assert "knows 5 classes and" in output


def test_names_that_differ_are_said(small_weights, shapes):
    order = described(
        shapes.parent / "order.yaml", names=dict(enumerate(("Circle", "triangle", "square", "star", "cross")))
    )
    session = open_session(make_recipe({"model": str(small_weights), "data": str(order), "imgsz": 96}))
    (warning,) = (warning for warning in session.warnings if "called otherwise" in warning)
    assert "3 classes are called otherwise" in warning
    assert "0 is 'circle' and 'Circle', 1 is 'square' and 'triangle'" in warning


def test_single_cls_is_that_of_the_training(small_weights, shapes, tmp_path, autoquant):
    """A callback of such a training ended in a DataError out of model.train()."""
    yolo = YOLO(small_weights)
    old = yolo.model.float()
    network = DetectionModel(dict(old.yaml), nc=1, verbose=False)
    network.names, network.task, network.stride = {0: "item"}, "detect", old.stride
    network.args = {**old.args, "single_cls": True, "data": str(shapes), "imgsz": 96}
    yolo.model, yolo.ckpt = network, {"train_args": network.args}
    torch.save({"model": network, "train_args": network.args}, tmp_path / "one.pt")
    code, output, folder = autoquant(tmp_path / "one.pt", None)
    assert code == 0, output
    results = json.loads((folder / "results.json").read_text())
    assert results["recipe"]["single_cls"] is True
    assert results["recipe"]["data"] == str(shapes)
    assert any(
        "Taken from the training of" in warning and "single_cls=True" in warning for warning in results["warnings"]
    )


def test_no_data_anywhere_is_asked_for(autoquant, small_weights):
    code, output, _ = autoquant(small_weights, None)
    assert code == 2
    assert "There is no data to prove" in output
    assert "data=path/to/data.yaml" in output


def test_lists_of_images(small_weights, shapes, tmp_path):
    for split in ("train", "val"):
        files = sorted((shapes.parent / "images" / split).glob("*.jpg"))
        (tmp_path / f"{split}.txt").write_text("".join(f"{file}\n" for file in files))
    listed = described(tmp_path / "listed.yaml", train=[str(tmp_path / "train.txt")], val=str(tmp_path / "val.txt"))
    session = open_session(make_recipe({"model": str(small_weights), "data": str(listed), "imgsz": 96}))
    assert (len(session.data.calibration.images), len(session.data.evaluation.images)) == (16, 12)


@contextlib.contextmanager
def served(folder):
    """A folder behind HTTP, from which Ultralytics fetches the images of NDJSON."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_ndjson(small_weights, shapes, tmp_path, monkeypatch):
    pytest.importorskip(
        "aiohttp", reason="Ultralytics fetches the images of NDJSON with aiohttp, which is not installed"
    )
    lines = [
        {"type": "dataset", "task": "detect", "name": "nd", "class_names": {str(i): n for i, n in enumerate(NAMES)}}
    ]
    with served(shapes.parent) as address:
        for split in ("train", "val"):
            for label in sorted((shapes.parent / "labels" / split).glob("*.txt"))[:4]:
                boxes = [[float(v) for v in line.split()] for line in label.read_text().splitlines()]
                image = f"images/{split}/{label.stem}.jpg"
                entry = {
                    "type": "image",
                    "file": f"{split}_{label.stem}.jpg",
                    "url": f"{address}/{image}",
                    "split": split,
                }
                found = {"boxes": [[int(box[0]), *box[1:]] for box in boxes]}
                lines.append({**entry, "width": 320, "height": 320, "annotations": found})
        (tmp_path / "nd.ndjson").write_text("\n".join(map(json.dumps, lines)) + "\n")
        monkeypatch.setattr("ultralytics.data.converter.DATASETS_DIR", tmp_path, raising=False)
        recipe = make_recipe({"model": str(small_weights), "data": str(tmp_path / "nd.ndjson"), "imgsz": 96})
        session = open_session(recipe)
    assert (len(session.data.calibration.images), len(session.data.evaluation.images)) == (4, 4)
    assert session.data.evaluation.labelled


def test_an_image_that_vanishes_is_named(autoquant, small_weights, tmp_path, monkeypatch):
    data = make_dataset(tmp_path / "going", 6, 4)
    gone = sorted((tmp_path / "going/images/val").glob("*.jpg"))[2]
    from ultra_mq.jobs import pipeline

    make = pipeline.make_run_folder
    monkeypatch.setattr(pipeline, "make_run_folder", lambda *given: (gone.unlink(), make(*given))[1])
    code, output, _ = autoquant(small_weights, data)
    assert code == 2
    assert gone.name in output.replace(" ", "")
    assert "gone or broken since it was scanned" in output


def test_deep_images_are_said(small_weights, tmp_path):
    for sub in ("train", "val"):
        pictures(tmp_path / "deep", sub, 3, 1, ".png", lambda picture: picture.astype(np.uint16) * 257)
    data = described(tmp_path / "deep" / "deep.yaml")
    session = open_session(make_recipe({"model": str(small_weights), "data": str(data), "imgsz": 96}))
    assert any("have 16 bits a channel" in warning for warning in session.warnings)


# Files of exporters


@pytest.fixture(scope="module")
def exported(small_weights, tmp_path_factory):
    """The small network as Ultralytics exports it: square, rectangular, four images at once."""
    folder = tmp_path_factory.mktemp("exported")
    for name, keys in (("plain", {"imgsz": 96}), ("rect", {"imgsz": [96, 160]}), ("four", {"imgsz": 96, "batch": 4})):
        shutil.copy(small_weights, folder / f"{name}.pt")
        YOLO(folder / f"{name}.pt").export(format="onnx", verbose=False, **keys)
    model = onnx.load(folder / "plain.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "bare.onnx")
    model = onnx.load(folder / "plain.onnx")
    for node in model.graph.node:
        node.input[:] = ["input" if name == "images" else name for name in node.input]
    model.graph.input[0].name = "input"
    onnx.save(model, folder / "input.onnx")
    return folder


@pytest.mark.parametrize("name", ["plain", "rect", "four", "input"])
def test_graphs_are_taken_in_their_own_shape(run, exported, shapes, tmp_path, name):
    source = exported / f"{name}.onnx"
    code, output = run("ptq", source, f"data={shapes}", "--images", 4, "--preset", "everything", "-o", "int8.onnx")
    assert code == 0, output
    code, output = run("val", source, "int8.onnx", f"data={shapes}", "--json")
    assert code == 0, output
    assert json.loads(output)["files"][1]["agreement"] > 0
    image = next((shapes.parent / "images/val").glob("*.jpg"))
    assert run("autocast", source, "--image", image, "-o", "fp16.onnx")[0] == 0
    shape = [d.dim_value for d in onnx.load(tmp_path / "int8.onnx").graph.input[0].type.tensor_type.shape.dim]
    assert shape == {"rect": [1, 3, 96, 160], "four": [4, 3, 96, 96]}.get(name, [1, 3, 96, 96])


def test_graphs_without_metadata_ask_for_what_is_missing(run, exported, shapes):
    bare = exported / "bare.onnx"
    for command in (("ptq", bare, "--images", 4), ("val", bare)):
        code, output = run(*command, f"data={shapes}")
        assert code == 2
        assert "Add task=detect" in output
    options = ("--images", 4, "--preset", "everything", "-o", "int8.onnx")
    assert run("ptq", bare, f"data={shapes}", "task=detect", *options)[0] == 0
    code, output = run("val", bare, "int8.onnx", f"data={shapes}", "task=detect", "--json")
    assert code == 0
    assert json.loads(output)["files"][0]["task"] == "detect"


def test_outputs_of_queries_are_not_read_as_anchors(run, exported, shapes):
    """RT-DETR's rows were read as columns: 0.00 mAP and exit 0."""
    model = onnx.load(exported / "plain.onnx")
    (output,) = model.graph.output
    rows = onnx.helper.make_tensor_value_info("rows", 1, [1, output.type.tensor_type.shape.dim[2].dim_value, 9])
    model.graph.node.append(onnx.helper.make_node("Transpose", [output.name], ["rows"], perm=[0, 2, 1]))
    del model.graph.output[:]
    model.graph.output.append(rows)
    onnx.save(model, "queries.onnx")
    code, output = run("val", "queries.onnx", f"data={shapes}")
    assert code == 2
    assert "ends in a transformer decoder (RT-DETR)" in output
    assert run("val", exported / "plain.onnx", f"data={shapes}")[0] == 0


def test_graphs_with_fp16_inputs(run, exported, shapes):
    from onnxconverter_common import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(exported / "plain.onnx")), "half.onnx")
    code, output = run("val", exported / "plain.onnx", "half.onnx", f"data={shapes}", "--json")
    assert code == 0, output
    assert json.loads(output)["files"][1]["agreement"] >= 0
    assert run("bench", "half.onnx", "--rounds", 1, "--runs", 2)[0] == 0


def test_rectangles_from_checkpoint_to_graph(autoquant, small_weights, shapes):
    code, output, folder = autoquant(small_weights, shapes, "imgsz=96,160")
    assert code == 0, output
    graph = onnx.load(next(folder.glob("*-int8.onnx"))).graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 96, 160]
    assert "at 96x160 px" in (folder / "report.md").read_text()


def test_several_images_a_pass(autoquant, small_weights, shapes):
    code, output, folder = autoquant(small_weights, shapes, "export.batch=4")
    assert code == 0, output
    graph = onnx.load(next(folder.glob("*-int8.onnx"))).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    results = json.loads((folder / "results.json").read_text())
    assert results["variants"][1]["parity"]["holds"]


def test_dynamic_engines(autoquant, small_weights, shapes, needs_rtx):
    code, output, folder = autoquant(
        small_weights, shapes, "export.dynamic=true", "export.batch=2", "engine.target=rtx"
    )
    assert code == 0, output
    results = json.loads((folder / "results.json").read_text())
    assert results["variants"][1]["engine_error"] is None
    assert results["variants"][1]["engine"]["size_bytes"] > 0


def test_a_size_that_is_no_multiple_of_the_stride(autoquant, small_weights, shapes):
    code, output, _ = autoquant(small_weights, shapes, "imgsz=96,100")
    assert code == 2
    assert "imgsz=100 is not a multiple of the model's stride" in output


def test_the_stride_is_the_models(tmp_path, run, shapes):
    from ultralytics.utils import ROOT

    found = yaml.safe_load((ROOT / "cfg/models/v8/yolov8-p6.yaml").read_text()) | {"nc": 5, "scale": "n"}
    (tmp_path / "yolov8n-p6.yaml").write_text(yaml.safe_dump(found))
    YOLO(tmp_path / "yolov8n-p6.yaml").save(tmp_path / "p6.pt")
    code, output = run("ptq", "p6.pt", f"data={shapes}", "imgsz=96")
    assert code == 2
    assert "stride 64. Use 64 or 128" in output


# Weights


def test_dead_layers_stay_in_float(autoquant, small_weights, shapes, tmp_path):
    yolo = YOLO(small_weights)
    block = yolo.model.float().model[2].m[0]
    block.cv1.bn.weight.data.zero_()
    block.cv1.bn.bias.data.zero_()
    yolo.save(tmp_path / "dead.pt")
    assert load_model(tmp_path / "dead.pt").dead == ("model.2.m.0.cv2.conv",)
    code, output, folder = autoquant(tmp_path / "dead.pt", shapes)
    assert code == 0, output
    (layer,) = (found for found in load_plan(folder / "plan.yaml").layers if found.name == "model.2.m.0.cv2.conv")
    assert (layer.format, layer.why) == ("fp16", "dead")
    warnings = json.loads((folder / "results.json").read_text())["warnings"]
    assert sum("input is always zero" in warning for warning in warnings) == 1


def test_class_names_with_markup(autoquant, small_weights, shapes, tmp_path):
    names = dict(enumerate(("<b>circle</b>", "[red]square[/red]", "a|b", "star", "star")))
    yolo = YOLO(small_weights)
    yolo.model.names = names
    yolo.save(tmp_path / "markup.pt")
    code, output, folder = autoquant(tmp_path / "markup.pt", described(shapes.parent / "markup.yaml", names=names))
    assert code == 0, output
    assert "<b>" not in (folder / "report.html").read_text()
    warnings = json.loads((folder / "results.json").read_text())["warnings"]
    assert any("several classes called star" in warning for warning in warnings)


@pytest.mark.parametrize("device", ["0", "0,1", "cuda", "7"])
def test_devices_that_are_not_there(autoquant, small_weights, shapes, device):
    if torch.cuda.is_available() and device != "7":
        pytest.skip("this machine has a GPU")
    code, output, _ = autoquant(small_weights, shapes, f"device={device}")
    assert code == 2
    assert f"device={device} is not on this machine" in output


# Training


@pytest.fixture
def quantized_yolo(small_weights, shapes):
    settings = {"imgsz": 96, "calibration": {"images": 4, "bias_correction": 0}, "sensitivity": {"images": 4}}
    return ultra_mq.quantize(YOLO(small_weights), bits=8, data=shapes, **settings)


TRAIN = {
    "imgsz": 96,
    "epochs": 1,
    "batch": 4,
    "workers": 0,
    "plots": False,
    "val": False,
    "device": "cpu",
    "verbose": False,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": {0: "round", 1: "angular"}}, "knows 5 classes and the data of this training has 2"),
        ({"names": {index: f"class {index}" for index in range(8)}}, "has 8"),
        ({"single_cls": True}, "single_cls=True makes it one"),
        ({"quantize": 8}, "would replace the plan"),
        ({"compile": True}, "compile cannot be used"),
    ],
)
def test_trainings_that_do_not_fit_are_refused_before_their_first_step(
    quantized_yolo, shapes, tmp_path, change, message
):
    names = change.pop("names", None) if "names" in change else None
    keys = dict(change)
    data = described(shapes.parent / f"classes-{len(names)}.yaml", names=names) if names else shapes
    with pytest.raises(ultra_mq.UltraMQError, match=message):
        quantized_yolo.train(data=str(data), project=str(tmp_path), **TRAIN, **keys)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_float_network_does_not_take_quantized_weights_silently(quantized_yolo, shapes, tmp_path):
    quantized_yolo.save(tmp_path / "q.pt")
    with pytest.raises(ultra_mq.UltraMQError, match=r"ultra_mq\.load"):
        YOLO(tmp_path / "q.pt").train(data=str(shapes), project=str(tmp_path), **TRAIN)
    YOLO(tmp_path / "q.pt").val(data=str(shapes), imgsz=96, plots=False, workers=0, verbose=False, device="cpu")


def test_a_callback_never_breaks_the_training_that_called_it(small_weights, shapes, tmp_path, caplog):
    yolo = YOLO(small_weights)
    yolo.add_callback("on_train_end", ultra_mq.callback(bits=9, data="gone.yaml"))
    with caplog.at_level("WARNING", logger="ultra_mq"):
        yolo.train(data=str(shapes), project=str(tmp_path), **TRAIN)
    (message,) = (record.getMessage() for record in caplog.records if "The training is done" in record.getMessage())
    assert "ultra-mq autoquant --bits 9" in message
    assert list(Path(tmp_path).rglob("best.pt")) or list(Path(tmp_path).rglob("last.pt"))
