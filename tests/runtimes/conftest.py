# SPDX-License-Identifier: AGPL-3.0-or-later
"""An engine on the stand-in of tests/fake, which runs ONNX files."""

import onnx
import pytest

from ultra_mq.graph.onnx_file import read_metadata
from ultra_mq.runtimes.engine import BuildSettings, find_runtime
from ultra_mq.runtimes.tensorrt_builder import build_engine


@pytest.fixture(scope="session")
def metadata(qdq):
    return read_metadata(onnx.load(str(qdq.path)))


@pytest.fixture
def engine(stand_in, qdq, metadata, tmp_path):
    settings = BuildSettings()
    return build_engine(qdq.path, tmp_path / "m.engine", metadata, settings, find_runtime(settings))
