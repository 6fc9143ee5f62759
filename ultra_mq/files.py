# SPDX-License-Identifier: AGPL-3.0-or-later
"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ultra_mq.errors import RunFolderError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
"""Error numbers of a disk or folder that cannot be written, as against a fault of the program."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Hand out a temporary name beside ``path``; on success it is renamed, on failure removed.

    Args:
        path: Final name. The temporary one keeps its suffix, because writers choose formats by it.

    Raises:
        RunFolderError: The folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


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
        temporary.write_text(text)


def csv_text(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def _cannot_write(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"Cannot write '{path}': {error.strerror or error}. "
        f"Free some space or choose a writable folder with project=... (runs) or ULTRA_MQ_CACHE (cache)."
    )
