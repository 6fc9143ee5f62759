# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checkpoints: those of 0.1.0 go on working, and new ones hold no path of a module of ours."""

import copy
import json
import pickletools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ultralytics import YOLO

import ultra_mq
from ultra_mq.core.errors import ModelError
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.graph.onnx_file import load_graph
from ultra_mq.quantization.apply import save_checkpoint
from ultra_mq.quantization.record import QuantizationRecord, read_record

OLD = Path(__file__).parent.parent / "data" / "shapes-mixed-10bit-0.1.0.pt"
"""The demo model at 10 bits, as ``ultra-mq autoquant`` of 0.1.0 saved it."""

LOAD = (
    "import json, sys; from ultralytics import YOLO; module = YOLO(sys.argv[1]).model\n"
    "names = [n for n, m in module.named_modules() if type(m).__name__ == 'TensorQuantizer' and m.is_enabled]\n"
    "print(json.dumps([len(names), len(module.quantization.formats), module.quantization.placement]))"
)


@pytest.fixture
def old(tmp_path):
    return shutil.copy(OLD, tmp_path / "old.pt")


def names_of_ours(path):
    """Everything of this package that the pickle in a checkpoint names."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        names = [argument for _, argument, _ in pickletools.genops(archive.read(name)) if isinstance(argument, str)]
    return {name for name in names if name.startswith("ultra_mq")}


def enabled(module):
    return {n for n, m in module.named_modules() if type(m).__name__ == "TensorQuantizer" and m.is_enabled}


def test_a_checkpoint_names_nothing_but_what_reads_it(quantized, model, tmp_path):
    save_checkpoint(quantized, model, tmp_path / "q.pt")
    assert names_of_ours(tmp_path / "q.pt") == {"ultra_mq read_record"}
    record = YOLO(tmp_path / "q.pt").model.quantization
    assert record == QuantizationRecord(quantized.quantization.formats, "runtime")


def test_a_checkpoint_of_0_1_0_loads_where_nobody_imported_us(old):
    done = subprocess.run([sys.executable, "-c", LOAD, str(old)], capture_output=True, text=True, check=True)
    quantizers, layers, placement = json.loads(done.stdout.splitlines()[-1])
    assert (layers, placement) == (40, "runtime")
    assert quantizers > 2 * layers  # of joins too


def test_a_checkpoint_of_0_1_0_validates_exports_and_trains(old, shapes, tmp_path):
    model = ultra_mq.load(old)
    before = enabled(model.model)
    settings = {"data": str(shapes), "imgsz": 160, "batch": 4, "workers": 0, "plots": False, "device": "cpu"}
    assert model.val(**settings, verbose=False).box.map > 0.5
    graph = YOLO(old).export(format="onnx", imgsz=160, simplify=False)
    assert quantized_layers(load_graph(Path(graph))) == set(model.model.quantization.formats)
    model.train(**settings, **{**ultra_mq.QAT, "epochs": 1}, project=str(tmp_path), name="qat", verbose=False)
    assert enabled(model.model) == before
    last = tmp_path / "qat" / "weights" / "last.pt"
    # Saved again it is a checkpoint of today, quantizers and record alike.
    assert names_of_ours(last) == {"ultra_mq read_record"}
    assert enabled(YOLO(last).model) == before


def test_a_record_survives_copies(quantized):
    assert copy.deepcopy(quantized.quantization) == quantized.quantization


def test_a_record_of_a_later_version():
    with pytest.raises(ModelError, match="'ultra-mq/quantization/9' of its quantization, which this version"):
        read_record({"schema": "ultra-mq/quantization/9"})
