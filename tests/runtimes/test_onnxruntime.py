# SPDX-License-Identifier: AGPL-3.0-or-later
import numpy as np
import pytest

from ultra_mq.core.errors import BackendError
from ultra_mq.runtimes.onnxruntime import OnnxRuntime


def test_infer_time_and_describe(qdq, batches):
    backend = OnnxRuntime(qdq.path, threads=1)
    image = next(iter(batches))["img"][:1].numpy()
    (output,) = backend.infer(image)
    assert output.shape == (1, 9, 525)  # 4 box values and 5 classes; 20*20 + 10*10 + 5*5 anchors at 160 px
    assert np.array_equal(output, backend.infer(image)[0])
    samples = backend.time(3)
    assert len(samples) == 3
    assert min(samples) > 0
    assert backend.describe()["threads"] == "1"
    assert backend.metadata["task"] == "detect"


def test_a_broken_file(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(BackendError, match="cannot load"):
        OnnxRuntime(tmp_path / "x.onnx")
