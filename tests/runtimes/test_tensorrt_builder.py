# SPDX-License-Identifier: AGPL-3.0-or-later
"""Builds: on the stand-in of tests/fake, and on TensorRT-RTX, which really parses and builds."""

import json
import re

import onnx
import pytest
from ultralytics.nn.backends.base import BaseBackend

from ultra_mq.graph.export import export_onnx
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.prepare.names import layer_of
from ultra_mq.runtimes.engine import BuildSettings, find_runtime
from ultra_mq.runtimes.inspection import find_mismatches
from ultra_mq.runtimes.tensorrt import TensorRt
from ultra_mq.runtimes.tensorrt_builder import _choose_flags, _choose_precisions, build_engine
from ultra_mq.runtimes.worker import Interpreter, Worker, WorkerError

RTX = BuildSettings(target="rtx")


def test_ultralytics_reads_the_header(engine, metadata):
    offset, header = BaseBackend.engine_header(engine.path)
    assert header == json.loads(json.dumps(metadata))
    assert (header["batch"], header["stride"], header["task"]) == (1, 32, "detect")
    assert header["args"]["nms"] is None
    assert offset > 4


def test_a_timing_cache_for_all_precisions(stand_in, qdq, metadata, tmp_path):
    runtime = find_runtime(BuildSettings())
    for _ in range(2):
        build_engine(
            qdq.path, tmp_path / "m.engine", metadata, BuildSettings(), runtime, timing_caches=tmp_path / "timing"
        )
    (cache,) = (tmp_path / "timing").iterdir()
    assert cache.name == "Stand-in_GPU-8.6.0.timing"
    assert cache.read_bytes() == b"++"


def told(build, tmp_path, monkeypatch):
    """What a build told TensorRT."""
    monkeypatch.setenv("FAKE_TRT_RECORD", str(tmp_path / "told.json"))
    build()
    return json.loads((tmp_path / "told.json").read_text())


def test_a_weakly_typed_builder_is_told_every_type(stand_in, qdq, metadata, tmp_path, monkeypatch):
    settings = BuildSettings(version_compatible=True)
    runtime = find_runtime(settings)
    assert not runtime.strongly_typed
    found = told(
        lambda: build_engine(qdq.path, tmp_path / "m.engine", metadata, settings, runtime), tmp_path, monkeypatch
    )
    # TF32 is no FP32: it is switched off where box decode must be exact.
    assert found["flags"] == ["FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS", "VERSION_COMPATIBLE"]
    assert found["creation_flags"] == 1
    assert found["types"]["/model.23/dfl/conv/Conv"] == ["FLOAT", "out FLOAT"]
    quantized = quantized_layers(onnx.load(qdq.path))
    halves = {layer_of(name) for name, types in found["types"].items() if types[0] == "HALF"}
    assert halves
    assert not halves & quantized


@pytest.mark.parametrize("version", ["10.13.0", "11.4.0"])
def test_a_strongly_typed_builder_is_told_by_its_graph(stand_in, qdq_fp16, metadata, tmp_path, monkeypatch, version):
    """No precision flags, which 11 does not have, and no types of layers."""
    monkeypatch.setenv("FAKE_TRT_VERSION", version)
    runtime = find_runtime(BuildSettings())
    assert (runtime.version, runtime.strongly_typed) == (version, True)
    path = tmp_path / "m.engine"
    found = told(lambda: build_engine(qdq_fp16.path, path, metadata, BuildSettings(), runtime), tmp_path, monkeypatch)
    assert found == {"flags": ["TF32"], "creation_flags": 0b11, "types": {}}
    with TensorRt(path) as backend:
        assert backend.describe()["version"] == version


def test_a_timing_cache_that_cannot_be_kept_costs_no_engine(stand_in, qdq, tmp_path):
    """A full disk threw the engine away after an hour of building, because the cache was written first."""
    plan = tmp_path / "plan"
    settings = {**BuildSettings().model_dump(mode="json"), "flags": ["FP16", "INT8"], "compute_capability": None}
    with Worker(Interpreter()) as worker:
        nowhere = str(tmp_path / "gone" / "x.timing")
        worker.call("build", 60, onnx=str(qdq.path), plan=str(plan), settings=settings, timing_cache=nowhere)
        assert "the timing cache cannot be kept" in worker.read_log()
    assert plan.read_bytes() == qdq.path.read_bytes()


def test_a_failed_build_leaves_no_file(stand_in, qdq, metadata, tmp_path):
    runtime = find_runtime(BuildSettings())
    stand_in("crash-build")
    with pytest.raises(WorkerError, match="signal 11"):
        build_engine(qdq.path, tmp_path / "out" / "m.engine", metadata, BuildSettings(), runtime)
    assert not (tmp_path / "out").exists()


def test_precision_stands_in_flags_before_tensorrt_10(model, qdq, tmp_path):
    fp32 = onnx.load(str(export_onnx(model.module, tmp_path / "fp32.onnx", 160).path))
    assert _choose_flags(fp32, BuildSettings()) == ("FP16",)
    assert _choose_flags(onnx.load(str(qdq.path)), BuildSettings(version_compatible=True)) == (
        "FP16", "INT8", "VERSION_COMPATIBLE",
    )  # fmt: skip
    rules = _choose_precisions(fp32)

    def precision(rules, node):
        return next((kind for pattern, kind in rules if re.search(pattern, node)), None)

    assert precision(rules, "/model.23/dfl/conv/Conv") == "FLOAT"
    assert precision(rules, "/model.0/conv/Conv") == "HALF"


def test_only_float_convolutions_of_a_quantized_graph_are_told_their_type(qdq, plan):
    rules = _choose_precisions(onnx.load(str(qdq.path)))
    told = {pattern.strip("^$").replace("\\", "") for pattern, kind in rules if kind == "HALF"}
    assert len([name for name in told if name.endswith("/Conv")]) == sum(
        layer.format == "fp16" for layer in plan.layers
    )
    assert not any(name.endswith(("Sigmoid", "Add", "Concat")) for name in told)


def test_rtx_runs_every_layer_in_the_precision_of_the_plan(needs_rtx, qdq_fp16, plan, metadata, tmp_path):
    engine = build_engine(qdq_fp16.path, tmp_path / "m.engine", metadata, RTX, find_runtime(RTX))
    assert find_mismatches(plan.by_layer, engine.layer_types) == []
    assert engine.layer_types["model.23.dfl.conv"] == "Float"  # part of box decode, kept in FP32 on purpose
    assert {"Int8", "Half"} <= set(engine.layer_types.values())
    assert (engine.device, engine.flags) == ("8.9", ())
    assert BaseBackend.engine_header(engine.path)[1]["task"] == "detect"


def test_rtx_reports_progress(needs_rtx, qdq_fp16, metadata, tmp_path):
    seen = []
    build_engine(
        qdq_fp16.path, tmp_path / "m.engine", metadata, RTX, find_runtime(RTX), on_progress=lambda *p: seen.append(p)
    )
    assert len(seen) > 5
    assert all(0 < step <= steps for _, step, steps in seen if steps)


def test_a_graph_that_rtx_cannot_parse(needs_rtx, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(WorkerError, match="the parser refused the graph"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", {}, RTX, find_runtime(RTX))
    assert not (tmp_path / "x.engine").exists()


def test_a_gpu_that_rtx_does_not_know(needs_rtx, qdq_fp16, tmp_path):
    settings = BuildSettings(target="rtx", compute_capability="9.9")
    with pytest.raises(WorkerError, match=r"no ComputeCapability SM99; it knows .*SM89"):
        build_engine(qdq_fp16.path, tmp_path / "x.engine", {}, settings, find_runtime(settings))
