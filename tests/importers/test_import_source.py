"""The source stays as it is, to the byte; what cannot be imported is refused and nothing stored."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from kernel_locks import own_lock_lines
from origin_kit import Origin, everything_in

from mandrake_sessions import (
    CorruptDatabaseError,
    DatabaseMissingError,
    DatabasePathError,
    ImportSourceError,
    MandrakeSessionsError,
    NotADatabaseError,
    SessionManager,
)
from mandrake_sessions.importers import import_mandrake
from mandrake_sessions.importers import source as copying

Elsewhere = Callable[[Path, list[tuple[str, Any]], str], subprocess.Popen[str]]

only_linux = pytest.mark.skipif(
    not Path("/proc/locks").exists(), reason="locks of other processes are seen on Linux only"
)


def some_sessions(journal: str = "wal", rounds: int = 3) -> Origin:
    origin = Origin(journal=journal)
    origin.session("s")
    for number in range(rounds):
        origin.exchange("s", f"r{number}")
    return origin


def refused(
    source: Path,
    target: SessionManager,
    error: type[MandrakeSessionsError],
    match: str | None = None,
) -> None:
    before = everything_in(source.parent)
    with pytest.raises(error, match=match) as caught:
        import_mandrake(source, target, recover_orphans=True)
    assert type(caught.value) is error
    assert str(source) in str(caught.value)
    assert everything_in(source.parent) == before
    assert target.count_sessions() == 0


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate", "persist"])
def test_the_source_is_unchanged(journal: str, source: Path, target: SessionManager) -> None:
    some_sessions(journal).write(source)
    before = everything_in(source.parent)
    report = import_mandrake(source, target)
    assert report.rounds == 3
    assert everything_in(source.parent) == before


def test_rows_that_are_only_in_the_wal_of_a_crash_are_imported(
    source: Path, target: SessionManager, elsewhere: Elsewhere
) -> None:
    origin = some_sessions()
    origin.statements.insert(0, ("PRAGMA wal_autocheckpoint=0", ()))
    elsewhere(source, origin.statements, "crash")
    before = everything_in(source.parent)
    assert {"origin.sqlite", "origin.sqlite-wal"} <= before.keys()
    assert before["origin.sqlite"][1] <= 4096

    report = import_mandrake(source, target)

    assert everything_in(source.parent) == before
    assert (report.sessions, report.rounds) == (1, 3)


def test_a_crashed_wal_without_its_shm_gets_none(
    source: Path, target: SessionManager, elsewhere: Elsewhere
) -> None:
    elsewhere(source, some_sessions().statements, "crash")
    Path(f"{source}-shm").unlink()
    before = everything_in(source.parent)
    assert import_mandrake(source, target).rounds == 3
    assert everything_in(source.parent) == before


def test_a_hot_journal_is_rolled_back_in_the_copy(
    source: Path, target: SessionManager, elsewhere: Elsewhere
) -> None:
    some_sessions("delete", rounds=50).write(source)
    half_done = [
        ("PRAGMA cache_size=1", ()),
        ("PRAGMA cache_spill=1", ()),
        ("BEGIN", ()),
        ("UPDATE requests SET content = hex(zeroblob(5000))", ()),
        ("UPDATE turns SET content = hex(zeroblob(5000))", ()),
    ]
    elsewhere(source, half_done, "crash")
    before = everything_in(source.parent)
    assert before["origin.sqlite-journal"][1] > 0

    import_mandrake(source, target)

    assert everything_in(source.parent) == before
    assert target.get_request("r7-request").content == "ask r7"


def test_a_source_behind_a_link_is_copied_with_the_files_next_to_its_target(
    source: Path, target: SessionManager, tmp_path: Path, elsewhere: Elsewhere
) -> None:
    elsewhere(source, some_sessions().statements, "crash")
    link = tmp_path / "link.sqlite"
    link.symlink_to(source)
    assert import_mandrake(link, target).source == str(source)
    assert target.count_sessions() == 1


def test_the_copy_goes_when_the_import_ends(
    source: Path, target: SessionManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_sessions().write(source)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    seen: list[Path] = []
    import_mandrake(source, target, progress=lambda _: seen.extend(folder.iterdir()))
    (copy,) = seen
    assert copy.name.startswith("mandrake-import-")
    assert list(folder.iterdir()) == []


@only_linux
@pytest.mark.parametrize(
    ("journal", "last"),
    [
        ("wal", "SELECT 1"),
        ("wal", "BEGIN IMMEDIATE"),
        ("delete", "BEGIN; SELECT count(*) FROM sessions"),
        ("delete", "BEGIN IMMEDIATE"),
        ("delete", "BEGIN EXCLUSIVE"),
    ],
)
def test_a_source_that_another_process_has_open_is_refused(
    journal: str, last: str, source: Path, target: SessionManager, elsewhere: Elsewhere
) -> None:
    holder = elsewhere(source, [*some_sessions(journal).statements, (last, ())], "hold")
    assert copying.find_user(source) == f"process {holder.pid}"
    refused(source, target, ImportSourceError, f"in use by process {holder.pid}")

    holder.communicate()
    assert copying.find_user(source) is None
    assert import_mandrake(source, target).rounds == 3


@only_linux
def test_a_source_that_this_process_has_open_is_refused_and_its_locks_stay(
    source: Path, target: SessionManager
) -> None:
    some_sessions().write(source)
    connection = apsw.Connection(str(source))
    connection.execute("SELECT count(*) FROM sessions").fetchall()
    held = own_lock_lines([source])
    assert held
    with pytest.raises(ImportSourceError, match="in use by this process"):
        import_mandrake(source, target)
    assert own_lock_lines([source]) == held
    connection.close()
    assert target.count_sessions() == 0


def test_the_target_itself_is_refused(target: SessionManager) -> None:
    with pytest.raises(ImportSourceError, match="to import into"):
        import_mandrake(target.path, target)


def test_a_source_that_changes_while_it_is_copied_is_copied_again(
    source: Path, target: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = some_sessions("delete")
    origin.write(source)
    copy_file, copies = copying._copy_file, []

    def change_once(file: int, to: Path) -> None:
        copy_file(file, to)
        copies.append(to)
        if len(copies) == 1:
            connection = apsw.Connection(str(source.with_name("other")))
            for sql, values in [*origin.statements, ("UPDATE requests SET content = 'new'", ())]:
                connection.execute(sql, values).fetchall()
            connection.close()
            source.with_name("other").replace(source)

    monkeypatch.setattr(copying, "_copy_file", change_once)
    import_mandrake(source, target)
    assert len(copies) == 2
    assert target.get_request("r0-request").content == "new"


def test_a_source_that_never_stays_the_same_is_refused(
    source: Path, target: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_sessions("delete").write(source)
    copy_file = copying._copy_file

    def change(file: int, to: Path) -> None:
        copy_file(file, to)
        now = source.stat().st_mtime_ns
        os.utime(source, ns=(now, now + 1_000_000))

    monkeypatch.setattr(copying, "_copy_file", change)
    with pytest.raises(ImportSourceError, match="changed while it was copied"):
        import_mandrake(source, target)
    assert target.count_sessions() == 0


def test_a_missing_source_file_is_refused(source: Path, target: SessionManager) -> None:
    refused(source, target, DatabaseMissingError)


def test_a_folder_as_source_is_refused(source: Path, target: SessionManager) -> None:
    source.mkdir()
    refused(source, target, DatabasePathError)


def test_a_source_that_is_no_database_is_refused(source: Path, target: SessionManager) -> None:
    source.write_bytes(b"dear diary, " * 1000)
    refused(source, target, NotADatabaseError)


def test_an_empty_source_file_is_refused(source: Path, target: SessionManager) -> None:
    source.touch()
    refused(source, target, ImportSourceError, "is not a database of Mandrake's")


def test_a_source_of_another_program_is_refused(source: Path, target: SessionManager) -> None:
    connection = apsw.Connection(str(source))
    connection.execute("CREATE TABLE sessions (id text)").fetchall()
    connection.close()
    refused(source, target, ImportSourceError, "sessions has no createdAt, description")


def test_views_are_no_tables(source: Path, target: SessionManager) -> None:
    origin = some_sessions()
    origin.run("ALTER TABLE turns RENAME TO hidden")
    origin.run("CREATE VIEW turns AS SELECT * FROM hidden")
    origin.write(source)
    refused(source, target, ImportSourceError, "turns has no ")


@pytest.mark.parametrize("page", [0, 1])
def test_a_damaged_source_is_refused(page: int, source: Path, target: SessionManager) -> None:
    some_sessions("delete", rounds=200).write(source)
    content = bytearray(source.read_bytes())
    pages = len(content) // 4096
    # The schema's own page, or one in the middle.
    begin = (100, pages // 2 * 4096)[page]
    content[begin : begin + 2000] = b"\xaa" * 2000
    source.write_bytes(content)
    refused(source, target, CorruptDatabaseError)


def test_an_index_that_misses_rows_is_damage(source: Path, target: SessionManager) -> None:
    origin = some_sessions("delete", rounds=0)
    origin.run("PRAGMA writable_schema=ON")
    origin.run(
        "UPDATE sqlite_schema SET sql = sql || ' WHERE 0' WHERE name = 'idx_turns_responseId'"
    )
    origin.write(source)
    connection = apsw.Connection(str(source))
    more = some_sessions()
    for sql, values in more.statements:
        if sql.startswith("INSERT") and "INTO sessions" not in sql:
            connection.execute(sql, values).fetchall()
    connection.execute("PRAGMA writable_schema=ON").fetchall()
    connection.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, ' WHERE 0', '')"
        " WHERE name = 'idx_turns_responseId'"
    ).fetchall()
    connection.close()
    refused(source, target, CorruptDatabaseError, "missing from index")
