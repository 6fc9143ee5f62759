# SPDX-License-Identifier: AGPL-3.0-or-later
"""The bootstrap against Ultralytics' own mAP, and the gate on top of it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ultra_mq.cli import main
from ultra_mq.measure.accuracy import Accuracy, save_accuracy
from ultra_mq.measure.agreement import score_agreement
from ultra_mq.measure.bootstrap import bootstrap_predictions
from ultra_mq.measure.predictions import Detections
from ultra_mq.measure.scored import ScoredObjects
from ultra_mq.report.results import SCHEMA

IMAGES = tuple(f"{number}.jpg" for number in range(40))


def bootstrap_metric(found, reference):
    return bootstrap_predictions(found, reference, "map")[0]


def bootstrap_agreement(found, reference):
    return bootstrap_predictions(found, reference, "agreement")[0]


def detections(seed=0, miss=0.0, images=IMAGES):
    """One object of one of three classes an image, found or, with a chance of ``miss``, not."""
    random = np.random.default_rng(seed)
    found = random.random(len(images)) >= miss
    classes = np.arange(len(images)) % 3
    boxes = np.tile([10.0, 10.0, 50.0, 40.0], (len(images), 1))
    return Detections(
        file_names=images,
        classes=classes,
        boxes=np.where(found[:, None], boxes, boxes + 500),
        scores=np.linspace(0.9, 0.3, len(images)),
        images=images,
        correct=np.repeat(found[:, None], 10, axis=1),
        label_images=images,
        label_classes=classes,
    )


def test_unweighted_is_ultralytics_own_map():
    from ultralytics.utils.metrics import ap_per_class

    found = detections(miss=0.3)
    ap = ap_per_class(found.correct, found.scores, found.classes, found.label_classes)[5]
    assert ScoredObjects(found).score(np.ones(40))[0] == pytest.approx(ap.mean(), abs=1e-12)


def test_a_weight_of_two_is_the_image_twice():
    found = detections(miss=0.3)
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40))
    twice = [index for index, weight in enumerate(weights) for _ in range(weight)]
    names = tuple(f"{number}.jpg" for number in range(40))
    resampled = Detections(
        names, found.classes[twice], found.boxes[twice], found.scores[twice], names, found.correct[twice], names,
        found.label_classes[twice],
    )  # fmt: skip
    wanted = ScoredObjects(resampled).score(np.ones(40))[0]
    assert ScoredObjects(found).score(weights)[0] == pytest.approx(wanted, abs=0.01)


def test_the_same_model_loses_nothing():
    drop = bootstrap_metric(detections(), detections())
    assert (drop.points, drop.low, drop.high, drop.images) == (0, 0, 0, 40)
    assert bootstrap_agreement(detections(), detections()).points == 0


def test_an_interval_holds_the_loss_and_pairs_the_images():
    worse = bootstrap_metric(detections(miss=0.25), detections())
    assert worse.low < worse.points < worse.high
    assert worse.low > 0
    # Both models miss the same objects: the difference is nothing, however few images there are.
    same = bootstrap_metric(detections(miss=0.25), detections(miss=0.25))
    assert same.high == 0


def test_agreement_is_the_agreement_of_the_report():
    found, reference = detections(miss=0.25), detections()
    drop = bootstrap_agreement(found, reference)
    assert drop.points == pytest.approx(100 * (1 - score_agreement(found, reference)), abs=1.0)


@pytest.fixture
def results(tmp_path):
    def write(miss, speedup=(1.2, 1.1, 1.3)):
        for name, found in (("fp32", detections()), ("int8", detections(miss=miss))):
            ap = ScoredObjects(found).score(np.ones(40))[0]
            save_accuracy(
                Accuracy("detect", {"metrics/mAP50-95(B)": ap}, 40, None, None, None, found),
                tmp_path / "accuracy" / name,
            )
        latency = {"speedup": speedup[0], "speedup_interval": speedup[1:]}
        alone = {"speedup": None, "speedup_interval": None}
        variants = [{"name": "fp32"}, {"name": "alone", "latency": alone}, {"name": "int8", "latency": latency}]
        path = tmp_path / "results.json"
        path.write_text(json.dumps({"schema": SCHEMA, "variants": variants}))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("miss", "speedup", "options", "code", "words"),
    [
        (0.0, (1.2, 1.1, 1.3), ["--max-drop", "0.5", "--min-speedup", "1"], 0, "passes"),
        (0.01, (1.2, 1.1, 1.3), ["--max-drop", "0.5"], 0, "inside the noise"),
        (0.5, (1.2, 1.1, 1.3), ["--max-drop", "0.5"], 1, "FAILS"),
        (0.0, (0.99, 0.95, 1.02), ["--min-speedup", "1"], 0, "inside the noise"),
        (0.0, (0.8, 0.78, 0.82), ["--min-speedup", "1"], 1, "FAILS"),
        (0.5, (1.2, 1.1, 1.3), ["--max-drop", "0.5", "--metric", "agreement"], 1, "FAILS"),
        (0.01, (1.2, 1.1, 1.3), ["--max-drop", "0.5", "--confidence", "0.9"], 1, "FAILS"),
        (0.0, (1.2, 1.1, 1.3), ["--max-drop", "0.5", "--confidence", "0.9"], 0, "passes"),
    ],
)
def test_exit_codes(results, miss, speedup, options, code, words):
    done = CliRunner().invoke(main, ["gate", results(miss, speedup), *options])
    assert done.exit_code == code
    assert words in done.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-drop", "1", "--variant", "nobody"], "has no variant 'nobody'. It has fp32, alone, int8"),
        (["--min-speedup", "1", "--variant", "fp32"], "has no latency of 'fp32'"),
        (["--min-speedup", "1", "--variant", "alone"], "has no speed-up of 'alone': it was timed alone"),
        ([], "Name a limit"),
    ],
)
def test_what_is_not_there(results, options, words):
    done = CliRunner().invoke(main, ["gate", results(0.0), *options])
    assert done.exit_code == 2
    assert words in done.output


def test_not_a_report(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    done = CliRunner().invoke(main, ["gate", str(tmp_path / "x.json"), "--max-drop", "1"])
    assert done.exit_code == 2
    assert "Pass the results.json" in done.output
