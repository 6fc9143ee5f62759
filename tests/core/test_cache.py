# SPDX-License-Identifier: AGPL-3.0-or-later
import errno
import os
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
    monkeypatch.setattr(cache_module, "versions", lambda: {"torch": "0"})
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


def test_two_runs_at_once_compute_once(tmp_path, capsys):
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
    assert "another run is working on the same stage" in capsys.readouterr().err


def test_waiting_ends(tmp_path, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(cache_module, "LOCK_TIMEOUT_S", 0.2)
    entry = tmp_path / "stage" / hash_key({"stage": "stage"})
    entry.parent.mkdir()
    with FileLock(entry.with_suffix(".lock")), pytest.raises(RunFolderError, match="Another run has held"):
        Cache(tmp_path).folder("stage", {}, writer("x", []))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk(tmp_path, code):
    def fail(folder):
        raise OSError(code, os.strerror(code))

    with pytest.raises(RunFolderError, match="Cannot write the cache"):
        Cache(tmp_path).folder("stage", {}, fail)


def test_the_root_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(RunFolderError, match="Cannot write the cache"):
        Cache(tmp_path / "cache").folder("stage", {}, writer("x", []))
