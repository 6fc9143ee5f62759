# SPDX-License-Identifier: AGPL-3.0-or-later
"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from ultra_mq.core.errors import RunFolderError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers of a disk that takes no more, whatever file it was."""

UNWRITABLE = (*FULL, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
"""Error numbers of a disk or folder that cannot be written, as against a fault of the program."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Hand out a temporary name beside ``path``; on success it is renamed, on failure removed.

    Args:
        path: Final name. The temporary one keeps its suffix, because writers choose formats by it.

    Raises:
        RunFolderError: The folder cannot be written, or the disk is full.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Created by its name and not by tempfile, whose files only their owner may read: here the umask decides.
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if is_unwritable(error, temporary):
            raise _cannot_write(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Hand out an empty folder beside ``path``, which must not exist; on success it is renamed, on failure removed.

    Raises:
        RunFolderError: The folder cannot be written, or the disk is full.
    """
    temporary = temporary_beside(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        if is_unwritable(error, temporary):
            raise _cannot_write(path, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_beside(path: Path) -> Path:
    """A hidden name beside a path that no one else uses."""
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex[:12]}{path.suffix}")


def is_unwritable(error: OSError, place: Path) -> bool:
    """Whether an error says that a place cannot be written, rather than that some other file cannot be read."""
    if error.errno in FULL:
        return True
    named = [Path(name) for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
    return error.errno in UNWRITABLE and any(place in (path, *path.parents) for path in named)


def publish(source: Path, target: Path) -> Path:
    """Copy a file, atomically, and return where it is now.

    Raises:
        RunFolderError: The folder cannot be written, or the disk is full.
    """
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        RunFolderError: The folder cannot be written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def csv_text(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _cannot_write(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"Cannot write '{path}': {error.strerror or error}. "
        f"Free some space or choose a writable folder with project=... (runs) or ULTRA_MQ_CACHE (cache)."
    )
