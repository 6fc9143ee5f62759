# SPDX-License-Identifier: AGPL-3.0-or-later
"""A content-addressed cache that is safe to share and to kill at any moment.

An entry is a folder named after the hash of everything its content depends on. It is made under another name and
renamed when complete, so a folder that exists is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from ultra_mq.core.errors import RunFolderError
from ultra_mq.core.files import is_unwritable, temporary_beside
from ultra_mq.core.terminal import warn

LAYOUT = 3
"""Raised when the meaning of cached content changes without a change of any version below."""

PACKAGES = ("ultra-mq", "ultralytics", "torch", "nvidia-modelopt", "onnx")


class Cache:
    """Entries under one root folder.

    Args:
        root: Folder of the cache; ``ULTRA_MQ_CACHE`` or the platform's cache folder by default, which is
            ``~/.cache/ultra-mq`` on Linux.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root or os.environ.get("ULTRA_MQ_CACHE") or user_cache_path("ultra-mq"))

    def folder(self, stage: str, depends_on: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """Return the folder of an entry, made first where it does not exist.

        Two runs that want the same entry at once: the second waits and reads what the first has made. It waits as long
        as the first one lives, since the lock goes with its process; an engine can take an hour.

        Args:
            stage: Name of the stage, for the reader of the cache.
            depends_on: Everything the content depends on, as plain JSON values.
            make: Fills a folder; called only where the entry is missing.

        Raises:
            RunFolderError: The cache cannot be written.
        """
        entry = self.root / stage / hash_key({**depends_on, "stage": stage})
        if entry.is_dir():
            return entry
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with _locked(entry.with_suffix(".lock"), stage):
                if not entry.is_dir():
                    self._fill(entry, make)
        except OSError as error:
            if not is_unwritable(error, self.root):
                raise
            raise RunFolderError(
                f"Cannot write the cache '{self.root}': {error.strerror or error}. "
                f"Free some space, or set ULTRA_MQ_CACHE to a writable folder."
            ) from error
        return entry

    def _fill(self, entry: Path, make: Callable[[Path], None]) -> None:
        temporary = temporary_beside(entry)
        temporary.mkdir()
        try:
            make(temporary)
            temporary.rename(entry)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, stage: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        warn(f"another run is working on the same {stage} (it holds '{path}'); waiting for its result.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def hash_key(depends_on: Mapping[str, Any]) -> str:
    """SHA-256 over the settings and over the versions of the packages that compute with them."""
    document = {"layout": LAYOUT, "versions": versions(), **depends_on}
    text = json.dumps(document, sort_keys=True, default=_refuse)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    return {package: importlib.metadata.version(package) for package in PACKAGES}


def _refuse(value: object) -> None:
    raise TypeError(f"{value!r} cannot be part of a cache key")
