# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest

from ultra_mq.core.errors import RunFolderError
from ultra_mq.core.files import atomic_path, write_text


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("x")
        assert temporary.suffix == ".txt"
        assert not path.exists()
    assert path.read_text() == "x"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match="Cannot write"):
        write_text(tmp_path / "file" / "a.txt", "x")
