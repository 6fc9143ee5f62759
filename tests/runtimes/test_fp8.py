# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests of FP8 as a format: which layers get it, what is exported, and what TensorRT-RTX makes of it."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ultra_mq.graph.autocast import convert_to_fp16
from ultra_mq.graph.export import export_onnx
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.graph.onnx_file import read_metadata
from ultra_mq.plan.gradient import measure_sensitivity
from ultra_mq.plan.perturb import measure_perturbation
from ultra_mq.plan.precision_plan import make_plan, uniform_plan
from ultra_mq.plan.prices import weight_prices
from ultra_mq.prepare.data import Batches
from ultra_mq.prepare.model import uniform_formats
from ultra_mq.quantization.apply import apply_formats
from ultra_mq.runtimes.engine import BuildSettings, find_runtime
from ultra_mq.runtimes.tensorrt_builder import build_engine


@pytest.fixture(scope="module")
def plan(model):
    """FP8 where there are kernels for it, INT8 in every second of the other layers."""
    choice = dict(uniform_plan(model, "fp8").quantized)
    others = [layer.name for layer in model.quantizable if layer.name not in choice]
    choice |= dict.fromkeys(others[::2], "int8")
    return make_plan(model, choice, weight_prices(model), why="user")


@pytest.fixture(scope="module")
def module(model, plan, calibration):
    return apply_formats(model, plan.quantized, calibration)


@pytest.fixture(scope="module")
def graph(module, tmp_path_factory):
    return export_onnx(module, tmp_path_factory.mktemp("fp8") / "fp8.onnx", 160)


def test_layers_of_few_channels_and_depthwise_ones_stay_out(model):
    chosen = uniform_plan(model, "fp8").quantized
    layers = dict(model.module.named_modules())
    assert 50 < len(chosen) < 81
    assert all(layers[name].groups == 1 and min(layers[name].weight.shape[:2]) > 16 for name in chosen)
    assert "model.0.conv" not in chosen


def test_the_solver_takes_what_hurts_less_and_never_fp8_for_a_small_layer(model, sensitivity, solve):
    able = uniform_formats(model, "fp8")
    scores = {name: {"int8": 1.0, "fp8": 2.0 if index % 2 else 0.5} for index, name in enumerate(sensitivity.scores)}
    for name in scores.keys() - able.keys():
        del scores[name]["fp8"]
    both = dataclasses.replace(sensitivity, scores=scores)
    found = solve(model, both, 8)
    channels = {layer.name: layer.channels for layer in model.quantizable}
    for index, (name, kind) in enumerate(found.quantized.items()):
        assert kind == ("fp8" if index % 2 == 0 and channels[name] > 16 else "int8")
    assert found.bits == pytest.approx(8)


@pytest.mark.parametrize("method", ["perturb", "gradient"])
def test_a_layer_without_kernels_has_no_score(model, calibration, batches, method):
    """A score of nothing would say that the format costs nothing there."""
    able = uniform_formats(model, "fp8")
    few = Batches(batches.split, [0, 1], 2)
    if method == "perturb":
        scores = measure_perturbation(model, calibration, few, ("int8", "fp8")).scores
    else:
        scores = measure_sensitivity(model, calibration, few, "outputs", ("int8", "fp8")).scores
    assert {name for name, by_format in scores.items() if "fp8" in by_format} == set(able)
    assert all("int8" in by_format for by_format in scores.values())


def test_ranges_are_those_of_each_format(module, plan, calibration):
    layers = dict(module.named_modules())
    for name, kind in plan.quantized.items():
        expected = calibration.largest[name] if kind == "fp8" else calibration.amax[name]
        assert float(layers[name].input_quantizer.amax) == pytest.approx(expected)


def test_the_graph_has_onnx_own_operators_of_both_types(graph, plan):
    loaded = onnx.load(graph.path)
    onnx.checker.check_model(loaded)
    assert quantized_layers(loaded) == set(plan.quantized)
    assert {opset.version for opset in loaded.opset_import if opset.domain == ""} == {19}
    assert not any(node.domain for node in loaded.graph.node)


def test_onnx_computes_what_torch_computes(graph, module, model, batches):
    image = next(iter(batches))["img"][:1]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": image.numpy()})[0]
    with torch.no_grad():
        fake, exact = module(image)[0].numpy(), model.module(image)[0].numpy()
    assert np.abs(found - fake).mean() < 0.5 * np.abs(exact - fake).mean()


@pytest.mark.parametrize("capability", ["8.9", "12.0"])
def test_rtx_runs_every_layer_in_its_format(capability, needs_rtx, graph, plan, batches, tmp_path):
    image = next(iter(batches))["img"][:1].numpy()
    typed = convert_to_fp16(graph.path, tmp_path / "typed.onnx", image)
    settings = BuildSettings(target="rtx", compute_capability=capability)
    metadata = read_metadata(onnx.load(graph.path))
    engine = build_engine(typed.path, tmp_path / "fp8.engine", metadata, settings, find_runtime(settings))
    executed = {name: engine.layer_types[name] for name in plan.quantized}
    assert executed == {name: {"fp8": "FP8", "int8": "Int8"}[kind] for name, kind in plan.quantized.items()}
