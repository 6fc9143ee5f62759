# SPDX-License-Identifier: AGPL-3.0-or-later
import json

import pytest
from click.testing import CliRunner

from ultra_mq.cli import main


def test_methods_and_numbers_of_images_are_compared(weights, shapes):
    arguments = [
        "calib", str(weights), "--method", "max", "--method", "mse", "--images", "2", "--images", "8", "--json",
        f"data={shapes}", "imgsz=160", "calibration.bias_correction=0",
    ]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert {(result["method"], result["images"]) for result in results} == {
        (method, images) for method in ("max", "mse") for images in (2, 8)
    }
    agreements = [result["agreement"] for result in results]
    assert agreements == sorted(agreements, reverse=True)
    assert 0.5 < agreements[-1] <= agreements[0] <= 1
    assert all(result["main"] == pytest.approx(0.7, abs=0.25) for result in results)
