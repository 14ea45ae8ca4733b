"""A log that is not the file's own, and a file whose log is missing, are refused as they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from kits.descriptors import open_connections
from kits.waiting import until

from mandrake_sessions import (
    ConnectionPool,
    DatabaseError,
    DatabaseOptions,
    Durability,
    HealthStatus,
    LostLogError,
    NewTurn,
    PoolOptions,
    RestoreError,
    SessionManager,
    StaleLogError,
    default_pool,
    diagnose,
    salvage,
)
from mandrake_sessions.database.connection.checkpoint import Checkpointer
from mandrake_sessions.database.files.own_wal import State, mismatch, state_of
from mandrake_sessions.database.files.wal_mark import NEW, USED, Mark, read_mark
from mandrake_sessions.database.pool.file_handle import file_handle

SUFFIXES = ("", "-wal", "-shm")

COPIED_AT_ONCE = 128 * 1024
"""Bytes that `cp` reads at once, at the least; the mark is among the first."""

WRITE = """
import os
from mandrake_sessions import NewTurn, SessionManager
sessions = SessionManager(sys.argv[1]).init()
for number in range(int(sys.argv[2])):
    session = sessions.create_session(f"{sys.argv[3]} {number}")
    sessions.record_round(session.id, "q" * 300, [NewTurn(content="a" * 3000)])
send("written")
receive()
"""


@pytest.fixture
def host(start_child: Callable[..., Any]) -> Callable[..., Any]:
    """Starts a process that stores sessions and is killed, or goes on when it hears something."""

    def start(path: Path, count: int, name: str, *, dies: bool = True) -> Any:
        child = start_child(WRITE, path, count, name)
        assert child.receive() == "written"
        if dies:
            child.process.kill()
            child.process.wait()
        return child

    return start


def write(path: Path, count: int, name: str = "ours") -> None:
    """Store sessions in this process, and close the file."""
    with ConnectionPool(PoolOptions(linger=0)) as pool, SessionManager(path, pool=pool) as sessions:
        for number in range(count):
            session = sessions.create_session(f"{name} {number}")
            sessions.record_round(session.id, "q" * 300, [NewTurn(content="a" * 3000)])


def count(path: Path, **options: Any) -> int:
    with (
        ConnectionPool(PoolOptions(linger=0)) as pool,
        SessionManager(path, pool=pool, **options) as sessions,
    ):
        return sessions.count_sessions()


def copy(source: Path, target: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        if Path(f"{source}{suffix}").exists():
            shutil.copy(f"{source}{suffix}", f"{target}{suffix}")


def bytes_of(path: Path) -> dict[str, str]:
    """What there is of a database: a digest of each file, but the index is made anew."""
    there = [suffix for suffix in SUFFIXES if os.path.exists(f"{path}{suffix}")]
    kept = [suffix for suffix in there if suffix != "-shm"]
    return dict.fromkeys(there, "") | {
        suffix: hashlib.md5(Path(f"{path}{suffix}").read_bytes()).hexdigest() for suffix in kept
    }


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    before = bytes_of(path)
    yield
    assert bytes_of(path) == before
    assert open_connections(path) == 0


def advice_of(path: Path) -> str:
    (check,) = [each for each in diagnose(path).checks if each.name == "own_log"]
    assert check.status is HealthStatus.FAILED
    return check.advice


# -- an old log at a newer file -----------------------------------------------------------------


@pytest.mark.parametrize(("early", "late"), [(1, 1), (2, 1), (20, 60), (60, 3)])
def test_the_wal_of_a_host_that_went_on_is_refused_with_the_file_of_an_earlier_closing(
    path: Path, tmp_path: Path, host: Callable[..., Any], early: int, late: int
) -> None:
    """A copying program that deletes nothing leaves the log of the night before at the file."""
    backup = tmp_path / "backup.sqlite"
    host(path, early, "monday")
    copy(path, backup, "", "-wal")
    write(path, late)
    assert not Path(f"{path}-wal").exists()
    copy(path, backup, "")

    with unchanged(backup), pytest.raises(StaleLogError) as caught:
        count(backup)

    assert caught.value.log == Path(f"{backup}-wal")
    assert "mv backup.sqlite-wal backup.sqlite-wal.old" in caught.value.message
    with unchanged(backup):
        assert "mv backup.sqlite-wal backup.sqlite-wal.old" in advice_of(backup)
    Path(f"{backup}-wal").rename(f"{backup}-wal.old")
    assert count(backup) == early + late


def test_the_first_part_of_a_wal_is_refused_with_the_file_that_has_all_of_it(
    path: Path, tmp_path: Path, host: Callable[..., Any]
) -> None:
    """Nothing is stored after the copy but what one reader's closing copies into the file."""
    backup = tmp_path / "backup.sqlite"
    child = host(path, 5, "monday", dies=False)
    copy(path, backup, "", "-wal")
    child.process.kill()
    child.process.wait()
    assert count(path) == 5
    copy(path, backup, "")

    with unchanged(backup), pytest.raises(StaleLogError):
        count(backup)


@pytest.mark.parametrize("is_update", [False, True], ids=["new sessions", "the same session"])
def test_the_first_part_of_a_wal_is_refused_with_a_file_into_which_more_of_it_was_copied(
    path: Path, tmp_path: Path, is_update: bool
) -> None:
    """A copying program takes the log first, and the file after a checkpoint of the same log."""
    backup = tmp_path / "backup.sqlite"
    with ConnectionPool(PoolOptions(linger=0)) as pool:
        sessions = SessionManager(path, pool=pool).init()
        session = sessions.create_session("before")
        copy(path, backup, "-wal")
        for number in range(3):
            if is_update:
                sessions.update_session(session.id, title=f"after {number}")
            else:
                sessions.create_session(f"after {number}")
        with contextlib.closing(apsw.Connection(str(path))) as other:
            other.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            other.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
        copy(path, backup, "")
        with unchanged(backup), pytest.raises(StaleLogError):
            count(backup)
        sessions.close()


def test_a_page_of_another_table_is_no_newest_change(path: Path) -> None:
    """Where a checkpoint was broken off, one may be found in the place of a page of changes."""
    write(path, 1)
    with contextlib.closing(apsw.Connection(str(path))) as other:
        assert state_of(other.execute).change > 0  # type: ignore[union-attr, operator]
        other.execute("PRAGMA ignore_check_constraints=ON")
        other.execute("INSERT INTO changes VALUES (1000000, 'x', 'session', 'x', 'a title')")
        assert state_of(other.execute).change is None  # type: ignore[union-attr]


def test_a_process_that_closes_in_order_leaves_a_file_that_refuses_every_copy_of_its_log(
    path: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "backup.sqlite"
    with ConnectionPool(PoolOptions(linger=0)) as pool:
        sessions = SessionManager(path, pool=pool).init()
        sessions.create_session("first")
        copy(path, backup, "-wal")
        sessions.close()
    copy(path, backup, "")

    with unchanged(backup), pytest.raises(StaleLogError):
        count(backup)


def test_the_log_of_another_database_is_refused(
    path: Path, tmp_path: Path, host: Callable[..., Any]
) -> None:
    other = tmp_path / "other.sqlite"
    host(other, 3, "theirs")
    write(path, 3)
    copy(other, path, "-wal")

    with unchanged(path), pytest.raises(StaleLogError):
        count(path)


def test_an_older_file_is_refused_under_a_newer_log(
    path: Path, tmp_path: Path, host: Callable[..., Any]
) -> None:
    """As a backup that is copied over the file of a host that was killed."""
    write(path, 3)
    copy(path, tmp_path / "backup.sqlite", "")
    write(path, 40)
    host(path, 3, "later")
    copy(tmp_path / "backup.sqlite", path, "")

    with unchanged(path), pytest.raises(StaleLogError, match="the file is older"):
        count(path)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Keep what is stored in the block from being copied into the file: a read is under way."""
    with contextlib.closing(apsw.Connection(str(path))) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM meta").fetchall()
        yield


def store(sessions: SessionManager, count: int) -> None:
    for number in range(count):
        sessions.create_session(f"number {number}", description="x" * 3000)


def backlog_of(sessions: SessionManager) -> int:
    return file_handle(sessions.handle).file.checkpointer.backlog


def mixed(earlier: bytes, later: bytes) -> bytes:
    """What a copy has of a file that a checkpoint wrote into between its first two reads."""
    return earlier[:COPIED_AT_ONCE] + later[COPIED_AT_ONCE:]


@pytest.mark.parametrize("is_mixture", [False, True], ids=["of one moment", "of two moments"])
def test_a_file_copied_between_two_checkpoints_is_refused_under_the_log_that_begins_after_them(
    pool: ConnectionPool, path: Path, tmp_path: Path, is_mixture: bool
) -> None:
    """What a copying program takes of a busy folder: the file first, and its log later.

    ::

        log     first ........ 30 sessions ........ |begins anew| one more
        copied         a part ──┐      all of it ──┐                 │
        taken                   └ the file                           └ the log
    """
    copied = tmp_path / "copy.sqlite"
    with SessionManager(path, pool=pool) as sessions:
        store(sessions, 30)
        file_handle(sessions.handle).file.checkpoint()
        sessions.create_session("first")
        with reading(path):
            store(sessions, 30)
            file_handle(sessions.handle).file.checkpoint()
            assert backlog_of(sessions) > 0
            earlier = path.read_bytes()
        file_handle(sessions.handle).file.checkpoint()
        assert backlog_of(sessions) == 0
        assert len(earlier) > COPIED_AT_ONCE
        copied.write_bytes(mixed(earlier, path.read_bytes()) if is_mixture else earlier)
        sessions.create_session("in the next log")
        copy(path, copied, "-wal")
        with unchanged(copied), pytest.raises(StaleLogError, match="the file is older"):
            count(copied)


def test_a_file_copied_while_a_checkpoint_copies_in_pieces_is_refused_under_the_next_log(
    make_pool: Callable[..., ConnectionPool],
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader ends while it copies."""
    copied = tmp_path / "copy.sqlite"
    passive = Checkpointer._passive
    # So many that none is made by itself; a quarter that is left after a piece is much.
    pool = make_pool(database={"checkpoint_frames": 300})
    with SessionManager(path, pool=pool) as sessions, contextlib.ExitStack() as reader:
        sessions.create_session("first")
        reader.enter_context(reading(path))

        def copy_between(checkpointer: Checkpointer, auxiliary: Any) -> None:
            passive(checkpointer, auxiliary)
            if not copied.exists():
                copy(path, copied, "")
                reader.close()

        with monkeypatch.context() as patch:
            patch.setattr(Checkpointer, "_passive", copy_between)
            store(sessions, 30)
            file_handle(sessions.handle).file.checkpoint()
            assert copied.exists()
            assert backlog_of(sessions) == 0
        sessions.create_session("in the next log")
        copy(path, copied, "-wal")
        with unchanged(copied), pytest.raises(StaleLogError, match="the file is older"):
            count(copied)


def test_a_file_copied_while_its_log_was_long_is_refused_under_the_log_that_was_cut(
    make_pool: Callable[..., ConnectionPool], path: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copy.sqlite"
    pool = make_pool(database={"checkpoint_frames": 1000, "wal_limit_bytes": 100_000})
    with SessionManager(path, pool=pool) as sessions:
        sessions.create_session("first")
        with reading(path):
            store(sessions, 60)
            file_handle(sessions.handle).file.checkpoint()
            copy(path, copied, "")
        until(lambda: Path(f"{path}-wal").stat().st_size < 100_000)
        sessions.create_session("in the log that was cut")
        copy(path, copied, "-wal")
        with unchanged(copied), pytest.raises(StaleLogError, match="the file is older"):
            count(copied)


def test_a_file_copied_between_two_logs_opens_with_the_second(
    pool: ConnectionPool, path: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copy.sqlite"
    with SessionManager(path, pool=pool) as sessions:
        for number in range(3):
            store(sessions, 10)
            file_handle(sessions.handle).file.checkpoint()
            copy(path, copied, "")
            sessions.create_session("in the next log")
            copy(path, copied, "-wal")
            assert count(copied) == 11 * (number + 1)
            Path(f"{copied}-wal").unlink(missing_ok=True)


def test_the_log_of_a_killed_host_is_its_own(path: Path, host: Callable[..., Any]) -> None:
    for number in range(3):
        host(path, 3, f"life {number}")
    assert diagnose(path).status is HealthStatus.OK
    assert count(path) == 9


def test_a_file_that_was_copied_with_its_log_opens(
    path: Path, tmp_path: Path, host: Callable[..., Any]
) -> None:
    """Also after a checkpoint has copied a part of the log into the file."""
    backup = tmp_path / "backup.sqlite"
    host(path, 3, "monday")
    raw = apsw.Connection(str(path))
    raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
    raw.close()
    copy(path, backup, "", "-wal")
    assert count(backup) == 3


@pytest.fixture
def stale(path: Path, tmp_path: Path, host: Callable[..., Any]) -> Path:
    """A file of 23 sessions, with a log of an earlier day that is not its own."""
    host(path, 3, "monday")
    copy(path, tmp_path / "stale.sqlite", "", "-wal")
    write(path, 20)
    copy(path, tmp_path / "stale.sqlite", "")
    return tmp_path / "stale.sqlite"


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("durability", Durability)
def test_every_opening_refuses_a_stale_log(
    stale: Path, create: bool, durability: Durability
) -> None:
    for _ in range(2):
        with unchanged(stale), pytest.raises(StaleLogError):
            count(stale, create=create, options=DatabaseOptions(durability=durability))


def test_a_reader_refuses_a_stale_log(stale: Path) -> None:
    with unchanged(stale), pytest.raises(StaleLogError):
        count(stale, read_only=True)


def test_a_backup_with_a_stale_log_is_not_restored(stale: Path, tmp_path: Path) -> None:
    with unchanged(stale), ConnectionPool() as pool, pytest.raises(StaleLogError) as caught:
        pool.restore(stale, tmp_path / "new.sqlite")
    assert caught.value.path == stale
    assert caught.value.log == Path(f"{stale}-wal")
    assert not (tmp_path / "new.sqlite").exists()


def test_a_file_that_is_replaced_is_kept_with_its_stale_log(stale: Path, tmp_path: Path) -> None:
    """To copy the log into the file would damage what may be wanted still."""
    write(tmp_path / "source.sqlite", 2)
    before = bytes_of(stale)
    with ConnectionPool() as pool:
        pool.restore(tmp_path / "source.sqlite", stale, overwrite=True)
    assert count(stale) == 2
    (kept,) = [each for each in tmp_path.glob("stale.sqlite.damaged-*") if "-wal" not in each.name]
    assert bytes_of(kept) == {suffix: before[suffix] for suffix in ("", "-wal")}


def test_salvage_does_not_mix_a_file_with_a_stale_log(stale: Path, tmp_path: Path) -> None:
    with unchanged(stale), pytest.raises(StaleLogError):
        salvage(stale, tmp_path / "new.sqlite")
    assert not (tmp_path / "new.sqlite").exists()


def test_the_alembic_way_refuses_a_stale_log(stale: Path) -> None:
    from mandrake_sessions.database.migrations.migrate import migrating_file

    with unchanged(stale), pytest.raises(StaleLogError), migrating_file(str(stale), create=True):
        pass


@pytest.mark.parametrize(
    ("alone", "through", "fits"),
    [
        ((5, 5), (5, 6), True),
        ((5, 6), (5, 6), True),
        ((5, 9), (5, 9), True),
        ((5, 7), (5, 6), False),
        ((1, 3), (4, 6), False),
    ],
)
def test_the_numbers_of_a_file_and_its_wal_lie_in_the_expected_range(
    alone: tuple[int, int], through: tuple[int, int], fits: bool
) -> None:
    states = [State(7, "stamp", Mark(*each, USED)) for each in (alone, through)]
    assert (mismatch(*states) is None) is fits


@pytest.mark.parametrize(
    ("alone", "through", "fits"),
    [
        (0, 0, True),
        (3, 8, True),
        (8, 8, True),
        (8, 3, False),
        (8, 0, False),
        (None, 3, True),
        (8, None, True),
    ],
)
def test_no_change_of_the_file_is_missing_in_its_log(
    alone: int | None, through: int | None, fits: bool
) -> None:
    states = [State(7, "stamp", Mark(5, 6, USED), each) for each in (alone, through)]
    assert (mismatch(*states) is None) is fits


# -- a file without its log ---------------------------------------------------------------------


@pytest.fixture
def lost(path: Path, host: Callable[..., Any]) -> Path:
    """A file whose content was in a log that is missing, kept as ``kept``."""
    host(path, 3, "in the log")
    Path(f"{path}-wal").rename(path.with_name("kept"))
    Path(f"{path}-shm").unlink()
    return path


@pytest.mark.parametrize("create", [True, False])
def test_a_file_whose_content_was_in_a_lost_log_is_refused(lost: Path, create: bool) -> None:
    for _ in range(2):
        with unchanged(lost), pytest.raises(LostLogError) as caught:
            count(lost, create=create)
        assert caught.value.log == Path(f"{lost}-wal")
        assert "db.sqlite-wal" in caught.value.message
    with unchanged(lost):
        assert "db.sqlite-wal" in advice_of(lost)


def test_the_log_may_come_back_after_the_refusal(lost: Path) -> None:
    with pytest.raises(LostLogError):
        count(lost)
    lost.with_name("kept").rename(f"{lost}-wal")
    assert [count(lost), count(lost)] == [3, 3]


@pytest.mark.parametrize("size", [0, 20, 32, 3000])
def test_a_log_that_was_cut_before_its_first_page_is_a_lost_one(lost: Path, size: int) -> None:
    Path(f"{lost}-wal").write_bytes(lost.with_name("kept").read_bytes()[:size])
    for _ in range(2):
        with unchanged(lost), pytest.raises(LostLogError):
            count(lost)
    with unchanged(lost), pytest.raises(LostLogError):
        count(lost, read_only=True)
    with unchanged(lost):
        assert "db.sqlite-wal" in advice_of(lost)


def test_a_copy_of_the_main_file_alone_is_refused_while_its_host_runs(
    path: Path, tmp_path: Path
) -> None:
    with SessionManager(path) as sessions:
        sessions.create_session("acknowledged")
        copy(path, tmp_path / "copy.sqlite", "")
    default_pool().close()
    with unchanged(tmp_path / "copy.sqlite"), pytest.raises(LostLogError):
        count(tmp_path / "copy.sqlite")
    with pytest.raises(LostLogError), ConnectionPool() as pool:
        pool.restore(tmp_path / "copy.sqlite", tmp_path / "new.sqlite")
    with pytest.raises(LostLogError):
        count(tmp_path / "copy.sqlite", read_only=True)


def test_a_file_that_was_closed_empty_and_used_later_is_refused_without_its_log(
    path: Path, host: Callable[..., Any]
) -> None:
    assert count(path) == 0
    assert count(path) == 0
    host(path, 1, "first")
    Path(f"{path}-wal").unlink()
    Path(f"{path}-shm").unlink()
    with pytest.raises(LostLogError):
        count(path)


def test_a_file_with_older_content_opens_without_its_log(
    path: Path, host: Callable[..., Any]
) -> None:
    write(path, 4)
    host(path, 3, "in the log")
    Path(f"{path}-wal").unlink()
    Path(f"{path}-shm").unlink()
    assert count(path) == 4


def test_a_new_file_that_nothing_was_stored_in_opens_however_it_was_left(
    path: Path, tmp_path: Path, host: Callable[..., Any]
) -> None:
    host(path, 0, "nothing")
    copy(path, tmp_path / "alone.sqlite", "")
    assert count(tmp_path / "alone.sqlite") == 0
    Path(f"{path}-wal").unlink(missing_ok=True)
    Path(f"{path}-shm").unlink(missing_ok=True)
    assert count(path) == 0


def test_a_file_whose_first_write_failed_opens_after_it_was_closed(
    path: Path, tmp_path: Path
) -> None:
    with ConnectionPool(PoolOptions(linger=0)) as pool, SessionManager(path, pool=pool) as sessions:
        with pytest.raises(Exception, match="no session"):
            sessions.create_round("nowhere", "question")
        sessions.backup(tmp_path / "backup.sqlite")
    assert not Path(f"{path}-wal").exists()
    assert count(path) == 0
    assert count(tmp_path / "backup.sqlite") == 0


def test_eight_processes_that_store_at_once_in_a_new_file_find_all_of_it(
    path: Path, start_child: Callable[..., Any]
) -> None:
    children = [start_child("receive()\n" + WRITE, path, 2, name) for name in "abcdefgh"]
    for child in children:
        child.send()
    for child in children:
        assert child.receive() == "written"
    for child in children:
        child.process.kill()
        child.process.wait()
    assert count(path) == 16


# -- the mark itself ----------------------------------------------------------------------------


def mark_of(path: Path) -> Mark:
    raw = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    with contextlib.closing(raw):
        mark = read_mark(raw.execute)
    assert mark is not None
    return mark


def test_the_number_grows_with_every_opening_that_writes_and_with_no_other(path: Path) -> None:
    count(path)
    assert mark_of(path).use == NEW
    numbers = []
    for _ in range(3):
        write(path, 1)
        numbers.append(mark_of(path).number)
        count(path)
        assert mark_of(path).number == numbers[-1]
    assert numbers == sorted(set(numbers))
    assert mark_of(path).use == USED


def test_a_log_that_begins_anew_has_the_mark_in_its_first_transaction(
    pool: ConnectionPool, path: Path
) -> None:
    with SessionManager(path, pool=pool) as sessions:
        sessions.create_session("first")
        other = apsw.Connection(str(path))
        other.execute("SELECT count(*) FROM meta").fetchall()
        other.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
        before = mark_of(path)
        sessions.create_session("in a log that begins anew")
        after = mark_of(path)
        sessions.create_session("in the same log")
        assert mark_of(path) == after
        other.close()
    assert after.base == before.number
    assert after.number == before.number + 1


def test_a_file_of_an_earlier_version_gets_its_mark_with_the_first_transaction(
    path: Path, host: Callable[..., Any]
) -> None:
    write(path, 1)
    raw = apsw.Connection(str(path))
    raw.execute("DELETE FROM meta WHERE key = 'log'")
    raw.close()
    host(path, 1, "later")
    assert count(path) == 2
    assert mark_of(path).use == USED


def test_errors_of_the_log_are_errors_of_opening() -> None:
    assert issubclass(StaleLogError, DatabaseError)
    assert not issubclass(StaleLogError, RestoreError)
