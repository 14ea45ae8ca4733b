"""Bytes of a file read by SQLite's own means: all of them, whatever they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mandrake_sessions.database.files.raw import RawFile, copy_bytes


@pytest.mark.parametrize("name", ["db.sqlite", "db.sqlite-wal"])
@pytest.mark.parametrize("size", [100, 4096, 28 * 4096, 256 * 4096, 257 * 4096 + 24])
def test_zeros_at_the_end_are_copied_too(tmp_path: Path, size: int, name: str) -> None:
    """The last page of a small database ends in zeros, and so may the last frame of a log."""
    source, target = tmp_path / name, tmp_path / "copy"
    # A log is not opened without its database.
    (tmp_path / "db.sqlite").touch()
    content = (b"x" * (size // 2)).ljust(size, b"\0")
    source.write_bytes(content)
    copy_bytes(source, target)
    assert target.read_bytes() == content


def test_no_more_is_read_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    path.write_bytes(b"x" + b"\0" * 99)
    with RawFile(path) as file:
        assert file.read(0, 1000) == b"x" + b"\0" * 99
        assert file.read(99, 1) == b"\0"
        assert file.read(100, 1) == b""
        assert file.read(1000, 1) == b""
