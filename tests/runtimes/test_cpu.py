# SPDX-License-Identifier: AGPL-3.0-or-later
"""INT8 on the CPU: what OpenVINO computes is what the graph says, or it is refused."""

import json
import os
import platform
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from ultra_mq.core.errors import BackendError
from ultra_mq.graph.export import export_onnx
from ultra_mq.graph.onnx_file import load_graph, weights_leave_room
from ultra_mq.graph.unsigned import make_unsigned, signed_activations
from ultra_mq.quantization.apply import apply_formats
from ultra_mq.runtimes import cpu
from ultra_mq.runtimes.openvino import OpenVino, _check_truth
from ultra_mq.session.recipe import make_recipe
from ultra_mq.session.session import open_session

pytest.importorskip("openvino", reason="OpenVINO is not installed")
IMGSZ = 160


@pytest.fixture(scope="module")
def graphs(model, calibration, tmp_path_factory):
    """Uniform INT8 as engines take it, and as it is made for OpenVINO on a CPU without VNNI."""
    folder = tmp_path_factory.mktemp("cpu")
    formats = {layer.name: "int8" for layer in model.quantizable}
    signed = export_onnx(apply_formats(model, formats, calibration), folder / "signed.onnx", IMGSZ).path
    roomy = apply_formats(model, formats, calibration, reduce_range=True)
    made = export_onnx(roomy, folder / "made.onnx", IMGSZ).path
    full = folder / "full.onnx"
    full.write_bytes(signed.read_bytes())
    make_unsigned(made)
    make_unsigned(full)
    return {"signed": signed, "unsigned": full, "made": made}


def run(path, image):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"images": image})[0]


@pytest.fixture(scope="module")
def image(batches):
    return next(iter(batches))["img"][:1].numpy()


def test_unsigned_activations_are_the_same_values(graphs, image):
    signed, unsigned = load_graph(graphs["signed"]), load_graph(graphs["unsigned"])
    assert len(signed_activations(signed)) > 80
    assert signed_activations(unsigned) == []
    one, other = (run(graphs[name], image)[0, 4:] for name in ("signed", "unsigned"))
    # What differs is the lowest step, -128, which the signed graph never uses.
    assert np.abs(one - other).mean() < 1e-3
    assert make_unsigned(graphs["unsigned"]) == 0


def test_seven_bits_leave_room(graphs):
    assert weights_leave_room(load_graph(graphs["made"]))
    assert not weights_leave_room(load_graph(graphs["signed"]))


SCRIPT = """
import json, sys
import numpy as np, openvino, onnxruntime
image = np.load(sys.argv[1])
found = {}
for path in sys.argv[2:]:
    core = openvino.Core()
    model = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    theirs = np.array(model([image])[model.outputs[0]])[0, 4:]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"images": image})[0][0, 4:]
    found[path] = float(np.abs(theirs - wanted).mean() / wanted.mean())
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN's instruction sets are those of x86")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE_VNNI"])
def test_openvino_computes_what_the_graph_says_on_older_cpus(graphs, image, tmp_path, instructions):
    """Our 8-bit graph scored 0.01 of mAP on OpenVINO and an AVX2 CPU, and 41.2 on ONNX Runtime."""
    flags = cpu.cpu_flags()
    if instructions != "AVX2" and "AVX512-VNNI" not in flags:
        pytest.skip("this CPU has no AVX512-VNNI")
    np.save(tmp_path / "image.npy", image)
    files = [str(tmp_path / "image.npy"), str(graphs["signed"]), str(graphs["made"])]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *files], capture_output=True, text=True, env=environment, check=True
    )
    signed, made = json.loads(done.stdout.splitlines()[-1]).values()
    assert made < 0.25
    assert signed > 2 * made


@pytest.mark.parametrize(
    ("flags", "allowed", "moves", "sums"),
    [
        (("AVX2",), "", True, True),
        (("AVX512-VNNI", "AVX2"), "", True, False),
        (("AVX-VNNI", "AVX2"), "", True, False),
        (("AVX512-VNNI", "AMX-INT8", "AVX2"), "", False, False),
        (("AVX512-VNNI", "AMX-INT8", "AVX2"), "AVX2", True, True),
        (("AVX512-VNNI", "AMX-INT8", "AVX2"), "ALL", False, False),
        ((), "", False, False),
    ],
)
def test_what_a_cpu_does(monkeypatch, flags, allowed, moves, sums):
    monkeypatch.setattr(cpu, "cpu_flags", lambda: flags)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert cpu.moves_signed() is moves
    assert cpu.overflows() is sums


def test_graphs_that_would_be_miscomputed_are_refused(graphs, monkeypatch):
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(BackendError, match=r"activations are signed.*--runtime openvino"):
        OpenVino(graphs["signed"])
    with pytest.raises(BackendError, match="this CPU has no VNNI"):
        OpenVino(graphs["unsigned"])
    # Opened for good, OpenVINO would keep to these instructions for the rest of this process.
    _check_truth(graphs["made"], load_graph(graphs["made"]))


def test_a_recipe_for_openvino_makes_what_the_cpu_needs(monkeypatch, small_weights, shapes):
    from ultra_mq.session import session as module
    from ultra_mq.session.artefacts import Artefacts
    from ultra_mq.session.stages import plan_variant

    monkeypatch.setattr(module, "overflows", lambda: True)
    document = {
        "model": str(small_weights), "data": str(shapes), "imgsz": 96, "runtime": "openvino",
        "calibration": {"images": 4, "bias_correction": 0}, "variants": [{"name": "int8", "precision": "int8"}],
    }  # fmt: skip
    session = open_session(make_recipe(document))
    graph = load_graph(Artefacts(session, plan_variant(session, session.recipe.variants[0])).graph)
    assert weights_leave_room(graph)
    assert signed_activations(graph) == []
    assert any("Weights use 7 of their 8 bits" in warning for warning in session.warnings)
    plain = open_session(make_recipe({**document, "runtime": "onnxruntime"}))
    graph = load_graph(Artefacts(plain, plan_variant(plain, plain.recipe.variants[0])).graph)
    assert not weights_leave_room(graph)
    assert signed_activations(graph)
