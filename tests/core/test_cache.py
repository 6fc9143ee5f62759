# SPDX-License-Identifier: AGPL-3.0-or-later
import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from ultra_mq.core.cache import Cache, hash_key
from ultra_mq.core.errors import RunFolderError


def writer(text, calls):
    def make(folder):
        calls.append(text)
        (folder / "value.txt").write_text(text)

    return make


def test_an_entry_is_made_once(tmp_path):
    calls = []
    cache = Cache(tmp_path)
    first = cache.folder("stage", {"a": 1}, writer("x", calls))
    second = cache.folder("stage", {"a": 1}, writer("x", calls))
    other = cache.folder("stage", {"a": 2}, writer("y", calls))
    assert first == second != other
    assert (first / "value.txt").read_text() == "x"
    assert calls == ["x", "y"]


def test_the_key_follows_settings_and_versions(monkeypatch):
    key = hash_key({"a": 1})
    assert key == hash_key({"a": 1}) != hash_key({"a": 2})
    monkeypatch.setattr("ultra_mq.core.cache.versions", lambda: {"torch": "0"})
    assert hash_key({"a": 1}) != key
    with pytest.raises(TypeError, match="cannot be part of a cache key"):
        hash_key({"a": object()})


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_entry_leaves_nothing(tmp_path, error):
    cache, calls = Cache(tmp_path), []

    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise error

    with pytest.raises(error):
        cache.folder("stage", {}, fail)
    assert not list((tmp_path / "stage").glob("*/"))
    entry = cache.folder("stage", {}, writer("whole", calls))
    assert [file.name for file in entry.iterdir()] == ["value.txt"]


def test_two_runs_at_once_compute_once(tmp_path, caplog):
    calls, results = [], []

    def slow(folder):
        calls.append(1)
        time.sleep(0.6)
        (folder / "value.txt").write_text("x")

    def work():
        results.append(Cache(tmp_path).folder("stage", {}, slow))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    assert results[0] == results[1]
    assert "another run is working on the same stage" in caplog.text


HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("how", ["it ends", "it is killed"])
def test_a_wait_lasts_as_long_as_the_other_run_lives(tmp_path, how):
    """However long a build takes: there is no limit to it, and a lock goes with its process."""
    entry = tmp_path / "stage" / hash_key({"stage": "stage"})
    entry.parent.mkdir()
    command = [sys.executable, "-c", HOLD, str(entry.with_suffix(".lock")), "1.0" if how == "it ends" else "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        if how == "it is killed":
            threading.Timer(0.8, holder.kill).start()
        start = time.monotonic()
        Cache(tmp_path).folder("stage", {}, writer("x", []))
    assert 0.3 < time.monotonic() - start < 60


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk(tmp_path, code):
    def fail(folder):
        raise OSError(code, os.strerror(code), str(folder / "value.txt"))

    with pytest.raises(RunFolderError, match="Cannot write the cache"):
        Cache(tmp_path).folder("stage", {}, fail)


def test_a_picture_that_cannot_be_read_is_not_a_fault_of_the_cache(tmp_path):
    def fail(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/pictures/1.jpg")

    with pytest.raises(PermissionError):
        Cache(tmp_path).folder("stage", {}, fail)


def test_entries_can_be_shared_as_the_umask_says(tmp_path):
    before = os.umask(0o002)
    try:
        entry = Cache(tmp_path).folder("stage", {}, writer("x", []))
    finally:
        os.umask(before)
    assert entry.stat().st_mode & 0o777 == 0o775


def test_the_root_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(RunFolderError, match="Cannot write the cache"):
        Cache(tmp_path / "cache").folder("stage", {}, writer("x", []))
