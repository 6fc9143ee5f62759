# SPDX-License-Identifier: AGPL-3.0-or-later
"""The main job on the real model and real images: bounds that a release must hold."""

import onnx
import pytest
from ultralytics import YOLO

import ultra_mq
from ultra_mq.graph.lint import quantized_layers
from ultra_mq.graph.onnx_ptq import PtqSettings, ptq, save_calibration
from ultra_mq.jobs.diff_job import diff_files
from ultra_mq.jobs.pipeline import run_recipe
from ultra_mq.measure.accuracy import compare
from ultra_mq.session.artefacts import evaluate_file
from ultra_mq.session.recipe import make_recipe
from ultra_mq.session.session import open_session
from ultra_mq.session.target import host_target

pytestmark = [pytest.mark.coco, pytest.mark.slow]

BITS = (7.5, 9)
LEAST_AGREEMENT = {7.5: 0.95, 9: 0.96}


@pytest.fixture(scope="module")
def document(coco_weights, coco_slice, tmp_path_factory):
    variants = [{"name": f"bits-{bits:g}", "bits": bits} for bits in BITS]
    variants.append({"name": "fp16", "precision": "fp16"})
    project = str(tmp_path_factory.mktemp("runs"))
    scoring = {"images": 8}  # three minutes less on two cores
    return {
        "model": str(coco_weights), "data": str(coco_slice), "project": project, "variants": variants,
        "sensitivity": scoring,
    }  # fmt: skip


@pytest.fixture(scope="module")
def report(document):
    return run_recipe(make_recipe({**document, "bench": {"rounds": 1, "runs": 3}}))


def test_the_float_model_scores_as_it_should(report):
    accuracy = report.reference.accuracy
    assert accuracy.images == 114
    assert accuracy.main == pytest.approx(0.433, abs=0.003)
    assert accuracy.coco.ap == pytest.approx(0.4375, abs=0.003)


def test_bits_are_reached(report):
    assert [variant.plan.bits for variant in report.variants[1:]] == pytest.approx([8, 9, 16], abs=0.02)
    assert any("floor of 8" in warning for warning in report.warnings)


def test_int8_loses_less_than_0_8_points(report):
    assert report.variants[1].accuracy.main > report.reference.accuracy.main - 0.008


def test_agreement(report):
    found = [variant.accuracy.agreement for variant in report.variants[1:3]]
    assert all(value >= LEAST_AGREEMENT[bits] for value, bits in zip(found, BITS, strict=True))
    assert found == sorted(found)


def test_torch_and_onnx_agree(report):
    assert all(variant.parity.holds for variant in report.variants[1:3])


def test_engines_run_what_was_planned(report):
    for variant in report.variants[1:]:
        assert variant.engine is not None, "TensorRT-RTX must be installed where these tests run"
        assert (variant.engine.target, variant.engine.device) == ("rtx", "8.9")
        assert variant.engine_mismatches == []


def test_the_page_stands_alone_with_its_pictures(report, browser):
    page = browser(report.folder / "report.html")
    assert page.problems == []
    assert page.count(".chart svg") >= 3
    assert page.count("figure img") >= 12
    assert (report.folder / "report.html").stat().st_size < 5e6


def test_a_diff_names_classes_and_draws_them(report, document, coco_slice, tmp_path, browser):
    """Uniform INT8 against float: person, chair and bottle stood out in every run so far."""
    float_file, int8 = report.folder / report.reference.onnx, report.folder / report.variants[1].onnx
    recipe = make_recipe({"data": str(coco_slice), "project": str(tmp_path), "name": "diff"})
    found = diff_files(float_file, int8, recipe)
    lost = {one.name for one in found.class_losses["agreement"] if one.surely_lost}
    assert "person" in lost
    assert all(one.loss.low > 0 for one in found.class_losses["agreement"] if one.surely_lost)
    assert sum(not picture.usual for picture in found.pictures) == 12
    page = browser(found.folder / "diff.html")
    assert page.problems == []
    assert page.count("figure img") == len(found.pictures)
    assert all(name in page.text for name in lost)


def test_a_second_run_comes_from_the_cache(report, document):
    again = run_recipe(make_recipe({**document, "bench": {"rounds": 0}}))
    assert not {"Calibrate", "Score", "Quantize and export", "Evaluate", "Parity", "Build"} & set(again.seconds)
    assert [v.accuracy.agreement for v in again.variants] == [v.accuracy.agreement for v in report.variants]


def test_modelopts_onnx_path(report, document, tmp_path):
    """The figure that Ultralytics' own recipe is known for, with 160 calibration images."""
    session = open_session(make_recipe(document))
    pixels = save_calibration(session.calibration_batches(160), tmp_path / "calibration.npy")
    fp32 = report.folder / report.reference.onnx
    graph = ptq(fp32, tmp_path / "ptq.onnx", pixels, PtqSettings())
    accuracy = evaluate_file(session, graph.path, "ptq", host_target(session.recipe))
    found = compare(accuracy, report.reference.accuracy.predictions)
    assert found.agreement == pytest.approx(0.883, abs=0.02)


def test_qat_keeps_the_quantizers(coco_weights, coco_slice, tmp_path):
    model = ultra_mq.quantize(YOLO(coco_weights), bits=9, data=coco_slice, imgsz=320)

    def enabled(network):
        layers = network.named_modules()
        return {n for n, m in layers if getattr(m, "weight_quantizer", None) and m.weight_quantizer.is_enabled}

    before = enabled(model.model)
    model.train(
        data=str(coco_slice), imgsz=320, epochs=1, batch=16, lr0=1e-4, optimizer="SGD", warmup_epochs=0, device="cpu",
        workers=0, plots=False, project=str(tmp_path), verbose=False,
    )  # fmt: skip
    model.save(tmp_path / "qat.pt")
    loaded = YOLO(tmp_path / "qat.pt")
    assert before
    assert enabled(model.model) == enabled(loaded.model) == before
    metrics = loaded.val(data=str(coco_slice), imgsz=320, batch=8, plots=False, workers=0, verbose=False, device="cpu")
    assert metrics.box.map > 0.28
    assert quantized_layers(onnx.load(loaded.export(format="onnx", imgsz=320, simplify=False))) == before
