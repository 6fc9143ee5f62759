# SPDX-License-Identifier: AGPL-3.0-or-later
import copy
import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from ultralytics import YOLO

import ultra_mq
from ultra_mq.core.errors import BudgetError, ModelError, RecipeError
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.prepare.model import prepare_model

SETTINGS = {
    "imgsz": 160, "calibration": {"images": 8, "bias_correction": 4}, "sensitivity": {"images": 2},
    "evaluation": {"parity": False}, "engine": {"target": "none"},
}  # fmt: skip


def enabled(module):
    layers = dict(module.named_modules())
    return {
        name
        for name, layer in layers.items()
        if getattr(layer, "weight_quantizer", None) and layer.weight_quantizer.is_enabled
    }


def train_settings(data, folder):
    return {
        **{key: value for key, value in ultra_mq.QAT.items() if key != "epochs"},
        "data": str(data), "imgsz": 160, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "verbose": False,
        "project": str(folder), "exist_ok": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def yolo(weights, shapes):
    return ultra_mq.quantize(YOLO(weights), bits=9, data=shapes, **SETTINGS)


def test_a_yolo_is_quantized_in_place(yolo):
    assert isinstance(yolo, YOLO)
    assert 20 < len(enabled(yolo.model)) < 81


def test_a_module_gives_a_new_module(weights, shapes, yolo):
    module = YOLO(weights).model
    quantized = ultra_mq.quantize(module, bits=9, data=shapes, **SETTINGS)
    assert quantized is not module
    assert not enabled(module)
    assert enabled(quantized) == enabled(yolo.model)


def test_a_plan_can_be_given(weights, shapes, plan):
    quantized = ultra_mq.quantize(YOLO(weights), data=shapes, plan=plan, **SETTINGS)
    assert enabled(quantized.model) == set(plan.quantized)


def test_train_save_load_export(yolo, shapes, tmp_path):
    """One epoch of QAT through Ultralytics' own trainer keeps every quantizer, on disk and in the graph."""
    model = copy.deepcopy(yolo)
    layers = enabled(model.model)
    before = model.model.model[0].conv.weight.detach().clone()
    amax = {n: float(dict(model.model.named_modules())[n].input_quantizer.amax) for n in layers}
    model.train(**train_settings(shapes, tmp_path), epochs=1)
    assert enabled(model.model) == layers
    after = model.model.model[0].conv.weight.detach()
    assert not torch.equal(before, after)
    assert (before - after).abs().max() < 0.1
    trained = dict(model.model.named_modules())
    assert all(float(trained[name].input_quantizer.amax) == pytest.approx(value) for name, value in amax.items())

    model.save(tmp_path / "qat.pt")
    loaded = YOLO(tmp_path / "qat.pt")
    assert enabled(loaded.model) == layers
    metrics = loaded.val(data=str(shapes), imgsz=160, plots=False, workers=0, verbose=False, device="cpu", batch=4)
    assert metrics.box.map > 0.5

    graph = loaded.export(format="onnx", imgsz=160, simplify=False)
    assert quantized_layers(onnx.load(graph)) == layers


def test_an_interrupted_training_resumes_with_its_quantizers(yolo, shapes, tmp_path):
    class KilledError(Exception):
        pass

    def kill(trainer):
        raise KilledError

    model = copy.deepcopy(yolo)
    model.add_callback("on_fit_epoch_end", lambda trainer: trainer.epoch == 1 and kill(trainer))
    with pytest.raises(KilledError):
        model.train(**train_settings(shapes, tmp_path), epochs=3, name="qat")
    last = tmp_path / "qat" / "weights" / "last.pt"
    resumed = ultra_mq.load(last)
    assert resumed.ckpt["epoch"] == 1
    seen = []
    resumed.add_callback("on_train_epoch_start", lambda trainer: seen.append((trainer.epoch, enabled(trainer.model))))
    resumed.train(resume=True)
    layers = enabled(yolo.model)
    assert seen == [(2, layers)]
    assert enabled(resumed.model) == layers
    assert resumed.model.quantization.formats.keys() == layers


def test_distillation_draws_the_outputs_to_the_float_models(weights, shapes, batches, tmp_path):
    """Without a label: a model with ranges that are wrong on purpose comes closer to the float one."""
    reference = prepare_model(YOLO(weights)).module
    images = torch.cat([batch["img"] for batch in batches])

    def distance(module):
        with torch.no_grad():
            found, wanted = (network.eval()(images)[1]["scores"].sigmoid() for network in (module, reference))
            return float((found - wanted).square().sum())

    model = ultra_mq.quantize(YOLO(weights), bits=8, data=shapes, **SETTINGS)
    for module in model.model.modules():
        if type(module).__name__ == "TensorQuantizer" and module.is_enabled and module.amax.numel() == 1:
            module.amax = module.amax * 16
    before = distance(model.model)
    settings = {**train_settings(shapes, tmp_path), "lr0": 1e-3, "epochs": 4, "nbs": 4, "name": "distilled"}
    model.train(**settings, distill_model=str(weights))
    # The best checkpoint is the one of the best mAP, which on a dozen pictures is any of them.
    last = ultra_mq.load(tmp_path / "distilled" / "weights" / "last.pt")
    assert distance(last.model.float()) < 0.8 * before


def test_every_process_of_a_multi_gpu_training_gets_the_quantized_network(yolo, shapes, tmp_path):
    """Ultralytics hands its trainer to the processes in a file; what comes out of it must be ours."""
    from ultralytics.utils.dist import generate_ddp_file

    model = copy.deepcopy(yolo)
    settings = {**train_settings(shapes, tmp_path), "epochs": 1, "model": str(yolo.overrides["model"])}
    trainer = model._smart_load("trainer")(overrides=settings, _callbacks=model.callbacks)
    trainer.model = trainer.get_model(weights=model.model, cfg=model.model.yaml)
    file = Path(generate_ddp_file(trainer))
    script = (
        "import json, sys; from ultralytics.utils.patches import torch_load\n"
        "state = torch_load(sys.argv[1], map_location='cpu')\n"
        "names = [n for n, m in state['model'].named_modules() if type(m).__name__ == 'TensorQuantizer']\n"
        "print(json.dumps([state['trainer'].__name__, len(names)]))"
    )
    try:
        command = [sys.executable, "-c", script, str(file.with_suffix(".pt"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        file.unlink()
        file.with_suffix(".pt").unlink()
    assert done.returncode == 0, done.stderr
    quantizers = [m for m in model.model.modules() if type(m).__name__ == "TensorQuantizer"]
    assert json.loads(done.stdout.splitlines()[-1]) == ["QuantizedDetectionTrainer", len(quantizers)]


def test_callback_quantizes_after_training(small_weights, shapes, tmp_path):
    model = YOLO(small_weights)
    settings = {key: value for key, value in SETTINGS.items() if key != "imgsz"}
    model.add_callback("on_train_end", ultra_mq.callback(bits=9, **settings, bench={"rounds": 0}))
    model.train(
        data=str(shapes), imgsz=160, epochs=1, batch=4, lr0=1e-5, warmup_epochs=0, optimizer="SGD", workers=0,
        device="cpu", plots=False, project=str(tmp_path), name="t", verbose=False,
    )  # fmt: skip
    folder = tmp_path / "t" / "ultra-mq"
    assert (folder / "report.md").exists()
    assert (folder / "best-mixed-9bit.onnx").exists()


def test_autoquant_as_a_function(small_weights, shapes, tmp_path):
    report = ultra_mq.autoquant(
        small_weights, bits=9, data=shapes, project=str(tmp_path), bench={"rounds": 0}, **SETTINGS
    )
    assert report.folder == tmp_path / "autoquant"
    assert report.variants[1].name == "mixed-9bit"


def test_faults_leave_the_model_alone(weights, shapes):
    model = YOLO(weights)
    network = model.model
    for error, arguments in (
        (BudgetError, {"bits": 17}),
        (RecipeError, {"imgs": 3}),
        (ultra_mq.UltraMQError, {"imgsz": 100}),
    ):
        with pytest.raises(error):
            ultra_mq.quantize(model, data=shapes, **arguments)
    assert model.model is network
    with pytest.raises(BudgetError):
        ultra_mq.callback(bits=0)


def test_quantizing_twice_is_refused(yolo, shapes):
    with pytest.raises(ModelError, match="quantized already"):
        ultra_mq.quantize(yolo, data=shapes)


def test_exported_names_exist():
    assert all(getattr(ultra_mq, name) is not None for name in ultra_mq.__all__)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        ultra_mq.quantise  # noqa: B018


def test_import_does_not_bring_torch():
    import subprocess
    import sys

    code = "import sys, ultra_mq, ultra_mq.cli; print('torch' in sys.modules, 'ultralytics' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_a_quantized_yolo_is_recovered_in_place(weights, shapes):
    yolo = ultra_mq.quantize(YOLO(weights), bits=8, data=shapes, **SETTINGS)
    before = copy.deepcopy(yolo.model.state_dict())
    found = ultra_mq.recover(yolo, shapes.parent / "images" / "train", number=12, epochs=2, imgsz=160)
    assert len(found.losses) == 3
    changed = any(not torch.equal(value, before[name]) for name, value in yolo.model.state_dict().items())
    assert changed == (found.kept > 0)


def test_what_cannot_be_recovered(weights, shapes):
    with pytest.raises(ModelError, match="not quantized"):
        ultra_mq.recover(YOLO(weights), shapes)
    module = ultra_mq.quantize(YOLO(weights).model, bits=8, data=shapes, **SETTINGS)
    with pytest.raises(ModelError, match="not known which float model"):
        ultra_mq.recover(module, shapes)
