"""The disks that tests use: one that fails where a test asks for it, one whose power is cut."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import apsw
import pytest

from mandrake_sessions import (
    BackupError,
    CommitOutcomeUnknownError,
    ConnectionPool,
    DatabaseIOError,
    DatabaseOptions,
    HealthLevel,
    HealthStatus,
    InvalidArgumentError,
    PoolOptions,
    SessionManager,
    StorageFullError,
)
from mandrake_sessions.database.error_codes import extended_code
from mandrake_sessions.testing import Fault, FaultVFS, PowerLossVFS, failure
from mandrake_sessions.testing.disk import (
    Disk,
    Event,
    FolderSynced,
    Named,
    Noted,
    Resized,
    Synced,
    Written,
)

PATH = "/folder/file"
SECTOR = 512


@pytest.fixture
def faulty() -> Iterator[FaultVFS]:
    vfs = FaultVFS()
    yield vfs
    vfs.unregister()


@pytest.fixture
def power() -> Iterator[PowerLossVFS]:
    vfs = PowerLossVFS()
    yield vfs
    vfs.unregister()


@contextlib.contextmanager
def opened(vfs: FaultVFS | PowerLossVFS, path: Path) -> Iterator[apsw.Connection]:
    """A plain database with one table."""
    with contextlib.closing(apsw.Connection(str(path), vfs=vfs.name)) as raw:
        raw.pragma("journal_mode", "wal")
        raw.execute("CREATE TABLE IF NOT EXISTS facts (id INTEGER PRIMARY KEY, text TEXT)")
        yield raw


def failures(raw: apsw.Connection, count: int) -> list[int]:
    """Insert rows one by one; return which of them failed."""
    failed = []
    for number in range(1, count + 1):
        try:
            raw.execute("INSERT INTO facts (text) VALUES ('x')")
        except apsw.Error:
            failed.append(number)
    return failed


# -- the one that fails -------------------------------------------------------------------------


def test_the_nth_operation_fails_once_or_for_good(faulty, path):
    with opened(faulty, path) as raw:
        with faulty.injecting(Fault("sync", nth=3, kind="wal")) as once:
            assert failures(raw, 6) == [3]
        with faulty.injecting(Fault("sync", nth=3, kind="wal", sticking=True)) as for_good:
            assert failures(raw, 6) == [3, 4, 5, 6]
        assert failures(raw, 2) == []
    assert (once.met, once.struck) == (6, 1)
    assert (for_good.met, for_good.struck) == (6, 4)


def test_only_files_of_the_named_kind_fail(faulty, path):
    with opened(faulty, path) as raw:
        with faulty.injecting(Fault("write", kind="db", sticking=True)) as injection:
            assert failures(raw, 2) == []
            assert not injection.struck
            with pytest.raises(apsw.IOError):
                raw.wal_checkpoint()
        assert injection.struck
    assert faulty.met["wal", "write"] >= 4


@pytest.mark.parametrize(
    ("operation", "code"),
    [("write", apsw.SQLITE_IOERR_WRITE), ("sync", apsw.SQLITE_IOERR_FSYNC)],
)
def test_each_operation_fails_with_a_code_of_its_own(faulty, path, operation, code):
    with opened(faulty, path) as raw:
        raw.pragma("synchronous", "full")
        with faulty.failing("wal", operation), pytest.raises(apsw.IOError) as caught:
            raw.execute("INSERT INTO facts VALUES (1, 'lost')")
    assert extended_code(caught.value) == code


@pytest.mark.parametrize(
    ("code", "error"), [(None, CommitOutcomeUnknownError), (apsw.SQLITE_FULL, StorageFullError)]
)
def test_the_library_answers_with_the_error_of_the_code(faulty, path, code, error):
    options = PoolOptions(database=DatabaseOptions(vfs=faulty.name), linger=0)
    with ConnectionPool(options) as pool, SessionManager(path, pool=pool) as sessions:
        with (
            faulty.injecting(Fault("write", kind="wal", code=code)),
            pytest.raises(error),
        ):
            sessions.create_session()
        assert sessions.create_session().id


READING = {
    "list": lambda sessions, _: sessions.list_sessions(),
    "write": lambda sessions, _: sessions.create_session("new"),
    "backup": lambda sessions, copy: sessions.backup(copy),
    "thorough": lambda sessions, _: sessions.health(HealthLevel.THOROUGH),
    "full": lambda sessions, _: sessions.health(HealthLevel.FULL),
}


@pytest.mark.parametrize("nth", [1, 3, 9])
@pytest.mark.parametrize("name", READING)
def test_a_page_that_the_disk_does_not_give_is_an_error_of_that_call(
    faulty, path, tmp_path, name, nth
):
    """It is no damage: SQLite calls it EIO, ``SQLITE_IOERR_CORRUPTFS``, and the next call reads."""
    with SessionManager(path) as sessions:
        for _ in range(50):
            sessions.create_session("title" * 50, "description" * 50)
    options = PoolOptions(database=DatabaseOptions(vfs=faulty.name), linger=0)
    fault = Fault("read", nth, kind="db", sticking=True, code=apsw.SQLITE_IOERR_CORRUPTFS)
    with ConnectionPool(options) as pool, SessionManager(path, pool=pool) as sessions:
        with (
            faulty.injecting(fault) as injection,
            contextlib.suppress(DatabaseIOError, BackupError),
        ):
            READING[name](sessions, tmp_path / "first")
        assert injection.struck or name in ("list", "write")
        READING[name](sessions, tmp_path / "second")
        assert sessions.create_session().id
        assert sessions.health(HealthLevel.THOROUGH).status is HealthStatus.OK


@pytest.mark.parametrize(("written", "size"), [(0.0, 0), (0.5, 16), (1.0, 32)])
def test_a_part_of_a_failing_write_reaches_the_file(faulty, path, written, size):
    """The first write into a log is its header of 32 bytes."""
    with contextlib.closing(apsw.Connection(str(path), vfs=faulty.name)) as raw:
        raw.pragma("journal_mode", "wal")
        raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        fault = Fault("write", kind="wal", written=written)
        with faulty.injecting(fault), pytest.raises(apsw.IOError):
            raw.execute("CREATE TABLE facts (id)")
        assert path.with_name(f"{path.name}-wal").stat().st_size == size


def test_a_watcher_is_asked_and_may_fail_it(faulty, path):
    asked = []

    def look() -> apsw.Error | None:
        asked.append(threading.get_ident())
        return failure(apsw.SQLITE_IOERR_FSYNC) if len(asked) == 2 else None

    with opened(faulty, path) as raw, faulty.watching("wal", "sync", look):
        assert failures(raw, 3) == [2]
    assert asked == [threading.get_ident()] * 3


def test_many_threads_meet_as_many_operations(faulty, tmp_path, in_threads):
    with faulty.injecting(Fault("sync", nth=10_000, kind="wal")) as injection:

        def work(number: int) -> int:
            with opened(faulty, tmp_path / f"{number}.sqlite") as raw:
                return len(failures(raw, 20))

        assert in_threads(4, work) == [0] * 4
        # One more for the table, one more for the header, another at the end.
        assert injection.met == faulty.met["wal", "sync"] >= 4 * 21


@pytest.mark.parametrize(
    "wrong",
    [
        {"operation": "wirte"},
        {"operation": "write", "kind": "shm"},
        {"operation": "write", "nth": 0},
        {"operation": "write", "written": 1.5},
    ],
)
def test_a_fault_that_could_never_strike_is_refused(wrong):
    with pytest.raises(InvalidArgumentError):
        Fault(**wrong)


# -- the one whose power is cut -----------------------------------------------------------------


def survivors(events: Sequence[Event], count: int = 200) -> set[bytes | None]:
    """Return everything that cuts after some events left of the file."""
    disk = Disk()
    for index, event in enumerate(events):
        disk.follow(index, event)
    random = Random(1)
    return {disk.survivors(random).get(PATH) for _ in range(count)}


def found(content: bytes) -> Named:
    return Named(PATH, 0, content, is_found=True)


def test_synced_bytes_are_there_and_others_may_be():
    events: list[Event] = [found(b"...."), Written(0, 0, b"ab"), Synced(0, 2), Written(0, 2, b"cd")]

    assert survivors(events) == {b"ab..", b"abcd"}


def test_a_sync_keeps_only_what_was_written_before_it_began():
    events: list[Event] = [found(b"...."), Written(0, 0, b"ab"), Written(0, 2, b"cd"), Synced(0, 2)]

    assert survivors(events) == {b"ab..", b"abcd"}


def test_a_long_write_is_torn_at_sectors():
    sectors = [bytes([letter]) * SECTOR for letter in b"abc"]
    left = survivors([found(bytes(3 * SECTOR)), Written(0, 0, b"".join(sectors))], 1000)

    whole = [each for each in left if each is not None and len(each) == 3 * SECTOR]
    assert len(whole) == len(left)
    pieces = {
        tuple(each[start : start + SECTOR] for start in range(0, 3 * SECTOR, SECTOR))
        for each in whole
    }
    assert pieces == {
        (first, second, third)
        for first in (sectors[0], bytes(SECTOR))
        for second in (sectors[1], bytes(SECTOR))
        for third in (sectors[2], bytes(SECTOR))
    }


def test_a_new_length_may_be_lost_and_a_later_write_kept():
    assert survivors([found(b"abcd"), Resized(0, 2)]) == {b"abcd", b"ab"}
    events: list[Event] = [found(b"abcd"), Resized(0, 0), Written(0, 0, b"z")]
    assert survivors(events) == {b"abcd", b"", b"z", b"zbcd"}


def test_a_new_name_may_be_lost_until_its_folder_is_synced():
    made: list[Event] = [Named(PATH, 0), Written(0, 0, b"a"), Synced(0, 2)]

    assert survivors(made) == {None, b"a"}
    assert survivors([*made, FolderSynced("/folder", 3)]) == {b"a"}
    assert survivors([*made, FolderSynced("/another", 3)]) == {None, b"a"}


def test_a_removed_file_may_come_back():
    removed: list[Event] = [found(b"a"), Named(PATH, None)]

    assert survivors(removed) == {b"a", None}
    assert survivors([*removed, FolderSynced("/folder", 2)]) == {None}


def test_a_cut_knows_what_was_noted_before_it_and_the_death_loses_nothing(power, path, tmp_path):
    with opened(power, path) as raw:
        raw.pragma("synchronous", "OFF")
        for number in range(10):
            raw.execute("INSERT INTO facts (text) VALUES ('x')")
            power.note(number)
        death = power.death()
        middle = [len(cut.notes) for cut in power.cuts(50, seed=1)]
        later = power.position
    assert death.notes == tuple(range(10))
    assert min(middle) == 0
    assert max(middle) > 5
    assert middle == sorted(middle)
    assert min(cut.at for cut in power.cuts(20, since=later)) >= later
    death.write(tmp_path / "dead")
    with contextlib.closing(apsw.Connection(str(tmp_path / "dead" / path.name))) as raw:
        assert raw.execute("SELECT count(*) FROM facts").get == 10


def test_the_same_seed_gives_the_same_cuts(power, path):
    with opened(power, path) as raw:
        failures(raw, 20)

    def contents(seed: int) -> list[dict[Path, bytes]]:
        return [cut.files for cut in power.cuts(10, seed=seed)]

    assert contents(1) == contents(1)
    assert contents(1) != contents(2)


def test_a_file_that_was_there_before_is_there_after(tmp_path, path):
    with contextlib.closing(apsw.Connection(str(path))) as raw:
        raw.execute("CREATE TABLE facts (id INTEGER PRIMARY KEY, text TEXT)")
        failures(raw, 5)
    power = PowerLossVFS()
    with opened(power, path):
        power.cut().write(tmp_path / "image")
    power.unregister()
    with contextlib.closing(apsw.Connection(str(tmp_path / "image" / path.name))) as raw:
        assert raw.execute("SELECT count(*) FROM facts").get == 5


def test_files_of_one_name_in_two_folders_are_not_written_over_each_other(power, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        with opened(power, tmp_path / folder / "db.sqlite") as raw:
            failures(raw, 1)
    with pytest.raises(InvalidArgumentError, match="same name"):
        power.death().write(tmp_path / "image")


def test_notes_are_kept_in_their_order():
    disk = Disk()
    for index, value in enumerate("abc"):
        disk.follow(index, Noted(value))
    assert disk.notes == ["a", "b", "c"]
