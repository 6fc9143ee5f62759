# SPDX-License-Identifier: AGPL-3.0-or-later
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner

from ultra_mq.cli import main
from ultra_mq.core.errors import BackendError
from ultra_mq.runtimes.backend import open_file
from ultra_mq.runtimes.onnxruntime import OnnxRuntime

if not os.environ.get("CI"):  # in CI it is installed, and its absence is a failure
    pytest.importorskip("openvino", reason="needs the extra 'openvino'")


def test_it_computes_what_onnx_runtime_computes(unsigned, batches):
    image = next(iter(batches))["img"][:1].numpy()
    runtime = open_file(unsigned, runtime="openvino", threads=1)
    found, expected = runtime.infer(image)[0], OnnxRuntime(unsigned).infer(image)[0]
    confident = expected[0, 4:].max(0) > 0.25
    assert confident.any()
    assert np.abs(found - expected)[0, :4, confident].mean() < 1  # pixel
    assert runtime.metadata == OnnxRuntime(unsigned).metadata
    assert runtime.describe()["threads"] == "1"


def test_results_are_not_overwritten_by_the_next_pass(unsigned, batches):
    images = next(iter(batches))["img"].numpy()
    runtime = open_file(unsigned, runtime="openvino")
    first = runtime.infer(images[:1])
    kept = first[0].copy()
    runtime.infer(images[1:2])
    assert np.array_equal(first[0], kept)


def test_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(BackendError, match="OpenVINO cannot load"):
        open_file(path, runtime="openvino")


def test_bench_on_the_command_line(unsigned):
    arguments = ["bench", str(unsigned), "--runtime", "openvino", "--rounds", "2", "--runs", "2", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout)["latencies"][str(unsigned)]
    assert measured["runtime"]["runtime"] == "OpenVINO"
    assert measured["p50_ms"] > 0
