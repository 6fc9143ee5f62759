# SPDX-License-Identifier: AGPL-3.0-or-later
"""Builders are kept within a job, begin anew after a failure, and can be stopped."""

import threading
import time

import psutil
import pytest

from ultra_mq.runtimes.builders import keep_builders, open_builder, stop_builders
from ultra_mq.runtimes.worker import Interpreter, WorkerError


def build_once():
    with open_builder(Interpreter()) as worker:
        worker.call("version", 30)
    return worker


def test_a_builder_is_kept_within_a_job(stand_in):
    with keep_builders():
        first = build_once()
        with keep_builders():
            assert build_once() is first
        assert first.alive
        with open_builder(Interpreter()), open_builder(Interpreter()) as second:
            assert second is not first
        assert first.alive != second.alive
    assert not first.alive
    assert not second.alive
    assert not build_once().alive


def test_a_failure_begins_anew(stand_in):
    with keep_builders():
        with pytest.raises(WorkerError), open_builder(Interpreter()) as worker:
            worker.call("dance", 30)
        assert not worker.alive
        died = build_once()
        psutil.Process(died.pid).kill()
        psutil.Process(died.pid).wait(10)
        assert build_once().alive


def test_a_machine_that_is_short_of_memory_keeps_none(stand_in, monkeypatch):
    monkeypatch.setattr("ultra_mq.runtimes.builders.ROOM_BYTES", 1e18)
    with keep_builders():
        assert not build_once().alive


def test_a_build_is_stopped_from_another_thread(stand_in, qdq, tmp_path):
    stand_in("hang-build")
    begun, caught = threading.Event(), []

    def build():
        try:
            with open_builder(Interpreter()) as worker:
                begun.set()
                worker.call("build", 600, onnx=str(qdq.path), plan=str(tmp_path / "plan"), settings={})
        except WorkerError as error:
            caught.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    assert begun.wait(30)
    time.sleep(1.0)
    assert thread.is_alive()
    stop_builders()
    thread.join(10)
    assert not thread.is_alive()
    assert "signal 9 during 'build'" in str(caught[0])
