# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an interval lets one say."""

import pytest
from scipy.stats import norm

from ultra_mq.measure.bootstrap import Drop


def drop(points, deviation):
    return Drop(points, points - 2 * deviation, points + 2 * deviation, 114, deviation)


@pytest.mark.parametrize(
    ("points", "limit", "verdict"),
    [(1.0, 2.0, "holds"), (3.0, 2.0, "fails"), (1.9, 2.0, "open"), (2.0, 2.0, "open"), (-1.0, 0.0, "holds")],
)
def test_a_verdict_is_as_sure_as_its_interval(points, limit, verdict):
    assert drop(points, 0.5).judge(limit) == verdict


def test_less_confidence_decides_more():
    close = drop(1.5, 0.5)
    assert close.sure_within(2.0) == pytest.approx(norm.cdf(1.0))
    assert (close.judge(2.0, 0.95), close.judge(2.0, 0.8)) == ("open", "holds")


def test_images_that_would_tell():
    """Four times the images halve the deviation."""
    close = drop(1.5, 0.5)
    needed = close.images_needed(2.0, 0.95)
    assert needed == pytest.approx(114 * norm.ppf(0.95) ** 2, abs=1)
    enough = Drop(1.5, 0, 0, needed, 0.5 * (114 / needed) ** 0.5)
    assert enough.sure_within(2.0) == pytest.approx(0.95, abs=1e-3)
    assert drop(2.0, 0.5).images_needed(2.0) is None


def test_no_deviation_is_no_doubt():
    assert drop(1.0, 0.0).sure_within(1.0) == 1.0
    assert drop(1.1, 0.0).sure_within(1.0) == 0.0
