"""Power cuts: rows acknowledged at ``durable`` are there after each, and nothing is half there.

The cuts are made of the record of one run: unsynced bytes are kept, lost or torn by chance.
Two runs show that the harness sees: ``fast`` loses rows that were acknowledged last, and
SQLite without any sync corrupts its file.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
import structlog.testing
from power_kit import look_at, pool_on, store
from sweep_kit import plain, require_whole, start_older

from mandrake_sessions import Durability, SessionManager, TurnNotFoundError, TurnStatus
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.paths import identify
from mandrake_sessions.database.migrations import migrate
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.testing import PowerLossVFS

WRITERS = 4
NAME = "db.sqlite"

InThreads = Callable[[int, Callable[[int], Any]], list[Any]]


@pytest.fixture
def vfs() -> Iterator[PowerLossVFS]:
    vfs = PowerLossVFS()
    yield vfs
    vfs.unregister()


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A folder with a database, and the scripts of a version that is newer than it."""
    return start_older(tmp_path / "older")


def show(what: str, findings: object) -> None:
    print(f"\n{what}: {findings}")  # shown with -s


@pytest.fixture
def work(vfs: PowerLossVFS, tmp_path: Path, in_threads: InThreads) -> Callable[..., str]:
    """Has writers store units at once, and notes each one that was acknowledged."""

    def run(durability: Durability, units: int, checkpoint_frames: int) -> str:
        with (
            pool_on(vfs, durability, checkpoint_frames=checkpoint_frames) as pool,
            SessionManager(tmp_path / NAME, pool=pool) as sessions,
        ):

            def write(writer: int) -> None:
                sessions.create_session(id=f"talk-{writer}")
                for number in range(units):
                    store(sessions, (writer, number))
                    vfs.note((writer, number))

            in_threads(WRITERS, write)
            figures = sessions.stats()
            assert figures.commits < figures.units, "no COMMIT was shared"
            return f"{figures.units} units in {figures.commits} COMMITs"

    return run


@pytest.mark.timeout(600)
@pytest.mark.parametrize("checkpoint_frames", [1000, 30])
def test_a_power_cut_takes_nothing_that_was_acknowledged_at_durable(
    vfs, tmp_path, work, campaign, checkpoint_frames
):
    figures = work(Durability.DURABLE, campaign.pick(15, 40, 40), checkpoint_frames)
    images = campaign.pick(12, 550, 2500)

    found = look_at(vfs.cuts(images, seed=images), NAME, tmp_path)

    show(f"durable, {figures}, checkpoints above {checkpoint_frames} frames", found)
    assert found.images == images
    assert found.acknowledged > images
    assert found.lost == 0
    if images > 500 and checkpoint_frames == 30:
        # Some cuts came during checkpoints, too.
        assert found.during["db write"] + found.during["db sync"] > 10


@pytest.mark.timeout(600)
@pytest.mark.parametrize("checkpoint_frames", [1000, 30])
def test_a_power_cut_at_fast_takes_the_newest_only_and_the_harness_sees_it(
    vfs, tmp_path, work, campaign, checkpoint_frames
):
    figures = work(Durability.FAST, campaign.pick(15, 40, 40), checkpoint_frames)
    images = campaign.pick(30, 200, 1000)

    found = look_at(vfs.cuts(images, seed=images), NAME, tmp_path)

    show(f"fast, {figures}, checkpoints above {checkpoint_frames} frames", found)
    assert found.lost > 0
    assert found.losing > images // 20


@pytest.mark.timeout(600)
@pytest.mark.parametrize("synchronous", ["OFF", "FULL"])
def test_the_harness_sees_that_without_syncs_a_file_is_corrupted(
    vfs, tmp_path, campaign, synchronous
):
    """On SQLite alone, with checkpoints: the library does not offer ``OFF``."""
    fill(vfs, tmp_path / NAME, synchronous)
    images = campaign.pick(40, 200, 400)
    corrupt = 0
    for cut in vfs.cuts(images, seed=images):
        cut.write(tmp_path / "image")
        with contextlib.closing(apsw.Connection(str(tmp_path / "image" / NAME))) as raw:
            corrupt += not is_whole(raw)
        shutil.rmtree(tmp_path / "image")

    show(f"bare SQLite, synchronous={synchronous}", f"{corrupt} of {images} images corrupt")
    if synchronous == "OFF":
        assert corrupt > images // 10
    else:
        assert corrupt == 0


def fill(vfs: PowerLossVFS, path: Path, synchronous: str) -> None:
    """Write to a file with SQLite alone."""
    with contextlib.closing(apsw.Connection(str(path), vfs=vfs.name)) as raw:
        raw.pragma("journal_mode", "wal")
        raw.pragma("synchronous", synchronous)
        raw.pragma("wal_autocheckpoint", 20)
        raw.execute("CREATE TABLE facts (id INTEGER PRIMARY KEY, name TEXT UNIQUE, text TEXT)")
        for number in range(300):
            values = (f"{number * 7919 % 1000:04}", "text " * 100)
            raw.execute("INSERT INTO facts (name, text) VALUES (?, ?)", values)
            if number % 3 == 0:
                raw.execute("DELETE FROM facts WHERE id = ?", (number // 2,))


def is_whole(raw: apsw.Connection) -> bool:
    try:
        require_whole(raw)
    except (apsw.Error, AssertionError):
        return False
    return True


@pytest.mark.timeout(600)
def test_a_power_cut_in_the_first_opening_leaves_no_file_or_a_whole_one(vfs, tmp_path, campaign):
    with (
        pool_on(vfs, Durability.DURABLE) as pool,
        SessionManager(tmp_path / NAME, pool=pool) as sessions,
    ):
        opened = vfs.position
        sessions.create_session(id="talk-0")
        store(sessions, (0, 0))
        vfs.note((0, 0))
        stored_at = vfs.position
    images = campaign.pick(6, 150, 500)

    found = look_at(vfs.cuts(images, seed=1), NAME, tmp_path)

    show(f"the first opening ({opened} of {stored_at} events)", found)
    assert found.lost == 0


@pytest.mark.timeout(600)
def test_a_power_cut_in_a_migration_leaves_the_old_schema_or_the_new_one(
    vfs, tmp_path, older, campaign
):
    """A migration that rebuilds the table everything else hangs on."""
    path = older / NAME
    identity = identify(path)
    assert identity is not None
    connection = open_connection(path, identity, DatabaseOptions(vfs=vfs.name), Budget(5.0))
    began = vfs.position
    migrate.upgrade(connection, Budget(5.0), scripts=older / "scripts")
    vfs.note("migrated")
    connection.close()
    images = campaign.pick(12, 150, 500)
    migrated = 0
    for cut in itertools.chain(vfs.cuts(images - 1, seed=images, since=began), [vfs.cut()]):
        cut.write(tmp_path / "image")
        with plain(tmp_path / "image" / NAME) as raw:
            require_whole(raw)
            # With foreign keys on, the rebuild would have deleted them.
            assert raw.execute("SELECT count(*) FROM turns").get == 3
            is_new = raw.execute("SELECT version_num FROM alembic_version").get == "next"
            columns = {row[1] for row in raw.execute("PRAGMA table_info(sessions)")}
            assert ("headline" in columns) == is_new
            assert is_new or "migrated" not in cut.notes
            migrated += is_new
        shutil.rmtree(tmp_path / "image")

    show("a migration", f"{images} images, {migrated} of them with the new schema")
    assert 0 < migrated < images


@pytest.mark.timeout(600)
@pytest.mark.parametrize("durability", list(Durability))
def test_a_power_cut_in_a_stream_leaves_what_was_flushed(
    vfs, tmp_path, in_threads, campaign, durability
):
    """Streams of several threads; at ``fast`` what is left is the beginning of each."""
    text = "".join(f"token {number} " for number in range(600))
    with (
        pool_on(vfs, durability, flush_interval=0.001, checkpoint_frames=50) as pool,
        SessionManager(tmp_path / NAME, pool=pool) as sessions,
    ):
        session = sessions.create_session()
        responses = [sessions.create_round(session.id, "?").response.id for _ in range(WRITERS)]

        def stream(writer: int) -> None:
            with sessions.stream_turn(responses[writer], id=f"turn-{writer}") as turn:
                vfs.note((writer, 0))
                for start in range(0, len(text), 400):
                    turn.write(text[start : start + 400])
                    if start % 1200 == 0:
                        turn.flush()
                        vfs.note((writer, min(start + 400, len(text))))
            vfs.note((writer, "completed"))

        in_threads(WRITERS, stream)
    images = campaign.pick(6, 200, 1000)
    lost = flushed = 0
    with pool_on(None, Durability.FAST) as pool, structlog.testing.capture_logs():
        for cut in vfs.cuts(images, seed=images):
            cut.write(tmp_path / "image")
            with SessionManager(tmp_path / "image" / NAME, pool=pool) as found:
                for writer in range(WRITERS):
                    noted = [note[1] for note in cut.notes if note[0] == writer]
                    flushed += len(noted)
                    lost += not is_kept(found, f"turn-{writer}", noted, text)
            pool.remove(tmp_path / "image" / NAME)
            shutil.rmtree(tmp_path / "image")

    show(
        f"streams at {durability.value}", f"{images} images, {flushed} flushes, {lost} turns short"
    )
    if durability is Durability.DURABLE:
        assert lost == 0


def is_kept(sessions: SessionManager, id: str, noted: list[Any], text: str) -> bool:
    """Return whether all that was flushed of a turn is there; fail if it is not its beginning."""
    try:
        turn = sessions.get_turn(id)
    except TurnNotFoundError:
        return not noted
    assert text.startswith(turn.content)
    if turn.status is TurnStatus.COMPLETED:
        assert turn.content == text
        return True
    # Its owner is gone.
    assert turn.status is TurnStatus.INTERRUPTED
    return "completed" not in noted and len(turn.content) >= max(noted, default=0)
