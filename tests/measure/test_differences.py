# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where two models part: known answers on objects laid out by hand, and every task drawn."""

import cv2
import numpy as np
import pytest

from ultra_mq.core.errors import EvaluationError, ReportError
from ultra_mq.measure.differences import find_differences, sample_evenly
from ultra_mq.measure.predictions import Classifications, Detections
from ultra_mq.report.gallery import draw_gallery

IMAGES = ("a.jpg", "b.jpg", "c.jpg")


def detections(rows, task="detect", **more):
    """Rows of image, class, score, x, y, width, height."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * 7
    return Detections(
        file_names=tuple(columns[0]),
        classes=np.array(columns[1], int),
        scores=np.array(columns[2], float),
        boxes=np.array(list(zip(*columns[3:], strict=True)), float).reshape(-1, 4),
        images=IMAGES,
        task=task,
        **more,
    )


REFERENCE = [
    ("a.jpg", 0, 0.9, 10, 10, 40, 40),  # lost altogether
    ("a.jpg", 1, 0.8, 100, 10, 40, 40),  # another class
    ("b.jpg", 0, 0.7, 10, 10, 40, 40),  # moved
    ("b.jpg", 0, 0.26, 100, 100, 20, 20),  # barely not drawn any more
    ("c.jpg", 2, 0.5, 10, 10, 40, 40),  # the same
    ("c.jpg", 2, 0.1, 80, 80, 20, 20),  # drawn by nobody
]
MODEL = [
    ("a.jpg", 2, 0.6, 101, 10, 40, 40),
    ("b.jpg", 0, 0.7, 20, 10, 40, 40),
    ("b.jpg", 0, 0.24, 100, 100, 20, 20),
    ("b.jpg", 3, 0.55, 200, 200, 30, 30),  # gained
    ("c.jpg", 2, 0.45, 10, 10, 40, 40),
]


def test_every_kind_by_hand():
    a, b, c = find_differences(detections(MODEL), detections(REFERENCE))
    assert [one.image for one in (a, b, c)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [(one.kind, one.before, one.after) for one in a.differences] == [("lost", 0, None), ("flipped", 1, 0)]
    assert [one.weight for one in a.differences] == pytest.approx([0.9, 0.8])
    assert [(one.kind, one.before, one.after) for one in b.differences] == [
        ("gained", None, 3), ("moved", 2, 1), ("lost", 3, None),
    ]  # fmt: skip
    # The box moved by a quarter of its width: they share 30 of 50 columns. What fell from 0.26 to 0.24 hardly counts.
    assert [one.weight for one in b.differences] == pytest.approx([0.55, 0.7 * (1 - 30 / 50), 0.02])
    assert (c.differences, c.same, c.weight) == ((), ((4, 4),), 0)


def test_the_same_model_parts_nowhere():
    assert all(one.weight == 0 for one in find_differences(detections(REFERENCE), detections(REFERENCE)))


def test_each_object_is_in_one_pair():
    """Two boxes of one object: the second is gained, and not the same twice."""
    twice = [("a.jpg", 0, 0.9, 10, 10, 40, 40), ("a.jpg", 0, 0.8, 11, 10, 40, 40)]
    first = find_differences(detections(twice), detections(twice[:1]))[0]
    assert [(one.kind, one.after) for one in first.differences] == [("gained", 1)]
    assert first.same == ((0, 0),)


def test_what_is_lost_and_gained_near_by_has_moved():
    """Below an IoU of a half two boxes are no pair, and still one object to whoever looks."""
    before, after = [("a.jpg", 0, 0.9, 10, 10, 40, 40)], [("a.jpg", 0, 0.6, 28, 10, 40, 40)]
    (difference,) = find_differences(detections(after), detections(before))[0].differences
    assert (difference.kind, difference.before, difference.after) == ("moved", 0, 0)
    assert difference.weight == pytest.approx(0.9 * (1 - 22 / 58))
    other = [("a.jpg", 1, 0.6, 28, 10, 40, 40)]  # of another class it is none
    kinds = {one.kind for one in find_differences(detections(other), detections(before))[0].differences}
    assert kinds == {"lost", "gained"}


def test_other_images_are_refused():
    other = Detections((), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), ("z.jpg",))
    with pytest.raises(EvaluationError, match="the same images"):
        find_differences(detections(MODEL), other)


def test_rotated_boxes_move_by_their_angle():
    rows = [("a.jpg", 0, 0.9, 10, 40, 80, 10)]
    flat = detections(rows, "obb", angles=np.array([0.0]))
    turned = detections(rows, "obb", angles=np.array([0.3]))
    assert find_differences(turned, flat)[0].differences[0].kind in ("moved", "lost")
    assert find_differences(flat, flat)[0].weight == 0


def test_keypoints_move_while_the_box_stays():
    rows = [("a.jpg", 0, 0.9, 10, 10, 60, 60)]
    points = np.array([[[20.0, 20.0, 1.0], [50.0, 50.0, 1.0]]])
    sigmas = np.array([0.05, 0.05])
    still = detections(rows, "pose", keypoints=points, sigmas=sigmas)
    moved = detections(rows, "pose", keypoints=points + np.array([4.0, 0.0, 0.0]), sigmas=sigmas)
    assert find_differences(still, still)[0].weight == pytest.approx(0, abs=1e-6)
    assert find_differences(moved, still)[0].weight > 0.25


def test_masks_are_compared_by_their_pixels():
    from pycocotools import mask

    def masked(columns):
        pixels = np.zeros((40, 40, 1), np.uint8, order="F")
        pixels[:, :columns] = 1
        counts = tuple(one["counts"] for one in mask.encode(pixels))
        return detections([("a.jpg", 0, 0.9, 0, 0, 40, 40)], "segment", masks=counts, mask_sizes=np.array([[40, 40]]))

    (difference,) = find_differences(masked(24), masked(40))[0].differences
    assert (difference.kind, difference.weight) == ("moved", pytest.approx(0.9 * 0.4))


def test_a_class_that_flips_comes_first():
    def said(*rows):
        return Classifications(IMAGES, np.log(np.array(rows, np.float32)), np.zeros(3, int))

    found = find_differences(said([0.9, 0.1], [0.45, 0.55], [0.6, 0.4]), said([0.9, 0.1], [0.55, 0.45], [0.99, 0.01]))
    assert [one.image for one in found] == ["b.jpg", "c.jpg", "a.jpg"]
    assert [one.kind for one in found[0].differences] == ["flipped"]
    assert found[1].weight == pytest.approx(0.39, abs=1e-5)


def test_an_even_sample_is_spread():
    found = find_differences(detections(MODEL), detections(REFERENCE))
    assert [one.image for one in sample_evenly(found, 1)] == ["b.jpg"]
    assert len(sample_evenly(found, 9)) == 3


@pytest.fixture
def files(tmp_path):
    for name in IMAGES:
        cv2.imwrite(str(tmp_path / name), np.full((240, 320, 3), 60, np.uint8))
    return {str(tmp_path / name): name for name in IMAGES}


def test_pictures_show_the_difference(files, tmp_path):
    names = dict(enumerate(("cat", "dog", "bird", "fish")))
    drawn = draw_gallery(detections(MODEL), detections(REFERENCE), files, names, tmp_path, 2)
    assert [(one.image, one.usual) for one in drawn] == [("a.jpg", False), ("b.jpg", False)]
    assert drawn[0].caption == "1 lost (cat 0.90); 1 flipped (dog 0.80 to bird 0.60)"
    assert drawn[1].caption == "1 gained (fish 0.55); 1 moved (cat 0.70); 1 lost (cat 0.26)"
    picture = cv2.imread(str(tmp_path / drawn[0].file))
    left, right = picture[:, :512].astype(int), picture[:, -512:].astype(int)
    # The lost cat stands at 16 to 80 pixels on the left, and nothing on the right.
    assert np.abs(left[14:82, 14:82] - 60).max() > 60
    assert np.abs(right[14:82, 14:82] - 60).max() < 30


def test_no_image_no_gallery(files, tmp_path):
    nothing = Detections((), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), ())
    with pytest.raises(ReportError, match="no image to draw"):
        draw_gallery(nothing, nothing, {}, {}, tmp_path, 3)
    gone = {f"/nowhere/{name}": name for name in IMAGES}
    with pytest.raises(ReportError, match="cannot be read any more"):
        draw_gallery(detections(MODEL), detections(REFERENCE), gone, {}, tmp_path, 3)
