# SPDX-License-Identifier: AGPL-3.0-or-later
"""The worker process dies, hangs, refuses; the client says so and cleans up."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ultra_mq.core.errors import BackendError
from ultra_mq.runtimes import trt_worker
from ultra_mq.runtimes.worker import Interpreter, Segment, Worker, WorkerError


def ended(pid):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def worker(stand_in):
    with Worker(Interpreter()) as found:
        yield found


def test_version(worker):
    answer = worker.call("version", 30)
    assert (answer["version"], answer["strongly_typed"]) == ("8.6.0", False)
    assert answer["gpu"]["name"] == "Stand-in GPU"
    assert answer["gpu"]["compute_capability"] == "9.0"


def test_an_interpreter_that_is_missing():
    with pytest.raises(BackendError, match=r"Cannot start '/nowhere/python'.*--trt-python"):
        Worker(Interpreter(python="/nowhere/python"))


def test_the_environment_names_the_interpreter(monkeypatch):
    monkeypatch.setenv("ULTRA_MQ_TRT_PYTHON", "/nowhere/python")
    assert Interpreter().command[0] == "/nowhere/python"
    assert Interpreter(python="/other").command[0] == "/other"
    assert Interpreter("tensorrt_rtx").command[0] == sys.executable


def test_a_python_without_tensorrt(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"TensorRT cannot be used.*libnvinfer.*pip install 'ultra-mq\[tensorrt\]'"):
        Worker(Interpreter())


def test_an_error_leaves_the_worker_alive(worker):
    with pytest.raises(WorkerError, match="no engine is open") as caught:
        worker.call("infer", 30, shapes={})
    assert not caught.value.died
    assert worker.call("version", 30)["version"] == "8.6.0"


def test_an_unknown_command(worker):
    with pytest.raises(WorkerError, match="unknown command 'dance'"):
        worker.call("dance", 30)


def test_a_killed_worker(worker):
    os.kill(worker.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(WorkerError, match="ended by signal 9 during 'version'") as caught:
            worker.call("version", 30)
        assert caught.value.died


def test_a_crash_says_what_it_wrote_last(stand_in, tmp_path):
    stand_in("crash-build")
    (tmp_path / "x.onnx").write_bytes(b"anything")
    with (
        Worker(Interpreter()) as worker,
        pytest.raises(WorkerError, match=r"signal 11 during 'build'.*a segmentation fault is coming"),
    ):
        worker.call("build", 30, onnx=str(tmp_path / "x.onnx"), plan=str(tmp_path / "p"), settings={})
    assert not (tmp_path / "p").exists()


def test_a_hung_worker_is_ended(stand_in, qdq):
    stand_in("hang-run")
    with Worker(Interpreter()) as worker:
        segment = Segment(worker, qdq.path, 0, 30)
        (name,) = segment.layout["inputs"]
        with pytest.raises(WorkerError, match=r"no answer to 'infer' for 0\.5 s") as caught:
            worker.call("infer", 0.5, shapes={name: segment.layout["tensors"][name]["shape"]})
        assert caught.value.died
        assert ended(worker.pid)


def test_the_segment_has_no_name_once_it_is_open(worker, qdq):
    segment = Segment(worker, qdq.path, 0, 30)
    assert not list(Path("/dev/shm").glob(f"ultra-mq-{os.getpid()}-*"))
    with pytest.raises(BackendError, match="takes at most"):
        segment.array("images", (2, 3, 640, 640))


def test_a_worker_ends_with_its_parent(stand_in):
    code = (
        "import os; from ultra_mq.runtimes.worker import *; w = Worker(Interpreter());"
        "print(w.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended(int(found.stdout))


def test_the_worker_is_python_3_8():
    for file in Path(trt_worker.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(), feature_version=(3, 8))
        modules = {
            name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        }
        assert modules <= set(sys.stdlib_module_names) | {"numpy", "cuda"}
        assert "from __future__ import annotations" in file.read_text() or file.name == "__init__.py"
