# SPDX-License-Identifier: AGPL-3.0-or-later
"""Losses class by class: the mean of the classes is the loss, and each is what Ultralytics says of it."""

import dataclasses

import numpy as np
import pytest

from ultra_mq.measure.accuracy import Accuracy, compare
from ultra_mq.measure.bootstrap import bootstrap_classes, find_broken_classes
from ultra_mq.measure.predictions import Classifications, Detections
from ultra_mq.measure.scored import ScoredClasses, average_precisions

IMAGES = tuple(f"{number}.jpg" for number in range(40))
CLASSES = np.arange(40) % 4


def accuracy(found):
    """One object an image; of class 3 the first two images alone."""
    kept = (CLASSES < 3) | (np.arange(40) < 8)
    names = tuple(np.array(IMAGES)[kept])
    boxes = np.where(found[kept, None], 10.0, 500.0) * np.ones((kept.sum(), 4))
    predictions = Detections(
        file_names=names,
        classes=CLASSES[kept],
        boxes=boxes,
        scores=np.linspace(0.9, 0.3, kept.sum()),
        images=IMAGES,
        correct=np.repeat(found[kept, None], 10, axis=1),
        label_images=names,
        label_classes=CLASSES[kept],
    )
    return Accuracy("detect", {}, 40, None, None, None, predictions)


@pytest.fixture
def pair():
    everything = np.ones(40, bool)
    missing = everything.copy()
    missing[np.flatnonzero(CLASSES == 1)[:5]] = False  # half of class 1
    missing[7] = False  # one of the two of class 3
    reference = accuracy(everything)
    from ultra_mq.measure.scored import ScoredObjects

    def with_map(made):
        ap = ScoredObjects(made.predictions).score(np.ones(40))[0]
        return dataclasses.replace(made, metrics={"metrics/mAP50-95(B)": ap})

    return with_map(accuracy(missing)), with_map(reference)


def test_each_class_is_ultralytics_own(pair):
    from ultralytics.utils.metrics import ap_per_class

    model, reference = pair
    loss, classes = bootstrap_classes(model, reference, "map", {0: "a", 1: "b", 2: "c", 3: "d"})
    found = model.predictions
    theirs = ap_per_class(found.correct, found.scores, found.classes, found.label_classes)[5].mean(1)
    assert {one.name: one.model for one in classes} == pytest.approx(dict(zip("abcd", theirs, strict=True)), abs=1e-12)
    assert [one.name for one in classes][:2] in (["b", "d"], ["d", "b"])
    assert loss.points == pytest.approx(np.mean([one.loss.points for one in classes]))
    assert {one.name: (one.labels, one.loss.images) for one in classes}["d"] == (2, 2)


def test_who_surely_lost(pair):
    _, classes = bootstrap_classes(*pair, "map", {0: "a", 1: "b", 2: "c", 3: "d"})
    by_name = {one.name: one for one in classes}
    assert [name for name, one in by_name.items() if one.surely_lost] == ["b"]
    assert by_name["a"].loss.low == by_name["a"].loss.high == 0
    assert not by_name["d"].resolved  # two images tell nothing, however much was lost
    assert [one.name for one in find_broken_classes(classes, 5)] == ["b"]
    assert find_broken_classes(classes, 90) == ()
    assert find_broken_classes(classes, None) == ()


def test_agreement_by_class(pair):
    model, reference = pair
    loss, classes = bootstrap_classes(compare(model, reference.predictions), reference, "agreement", {})
    assert classes[0].name in ("1", "3")  # a class without a name is its number
    assert {one.name: one.loss.points for one in classes}["0"] == pytest.approx(0)
    assert loss.points > 10


def test_a_classifier_by_class():
    truth = np.array([0, 0, 0, 1])
    scored = ScoredClasses(np.array([True, True, False, True]), truth)
    figure, classes = scored.score(np.array([1, 1, 2, 0]))
    assert figure == 0.5
    assert classes[0] == 0.5
    assert np.isnan(classes[1])
    probabilities = np.log(np.array([[0.9, 0.1]] * 20 + [[0.2, 0.8]] * 20, np.float32))
    said = Classifications(IMAGES, probabilities, np.repeat([0, 1], 20))
    worse = dataclasses.replace(said, log_probabilities=np.roll(probabilities, 8, axis=0))

    def made(predictions):
        right = float((predictions.classes == predictions.labels).mean())
        return Accuracy("classify", {"metrics/accuracy_top1": right}, 40, None, None, None, predictions)

    loss, classes = bootstrap_classes(made(worse), made(said), "map", {0: "cat", 1: "dog"})
    assert loss.points == pytest.approx(40)
    assert {one.name: one.loss.points for one in classes} == pytest.approx({"cat": 40, "dog": 40})


def test_the_curve_is_read_as_ultralytics_reads_it():
    from ultralytics.utils.metrics import compute_ap

    generator = np.random.default_rng(0)
    for number in range(1, 60):
        labels = int(generator.integers(1, 40))
        hits = generator.random((number, 10)) < generator.random(10)
        hits &= hits.cumsum(0) <= labels
        true = hits.cumsum(0)
        recall, precision = true / labels, true / np.arange(1, number + 1)[:, None]
        wanted = [compute_ap(recall[:, i], precision[:, i])[0] for i in range(10)]
        assert average_precisions(recall, precision) == pytest.approx(wanted, abs=1e-14)
