"""Salvage: content before order, nothing written to the damaged file, the result is sound."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from kernel_locks import own_lock_lines

from mandrake_sessions import (
    ConnectionPool,
    DatabaseMissingError,
    DatabaseOptions,
    Durability,
    NewTurn,
    PoolOptions,
    SalvageError,
    SalvageReport,
    SessionManager,
    StorageFullError,
    TableSalvage,
    diagnose,
    salvage,
)
from mandrake_sessions.database.connection.verification import verify
from mandrake_sessions.database.files.btree import Record, parse
from mandrake_sessions.database.files.pages import open_pages
from mandrake_sessions.models import TurnStatus
from mandrake_sessions.rescue.row_repair import LOST_REQUEST, TABLE_OF_WIDTH, repaired
from mandrake_sessions.tables import TABLES

PROJECT = Path(__file__).parents[2]
PAGE = 4096
TALKS = 6
ROUNDS = 12


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound database: six talks of twelve rounds, texts of all lengths, nothing open."""
    path = tmp_path_factory.mktemp("sound") / "db.sqlite"
    options = PoolOptions(database=DatabaseOptions(durability=Durability.FAST), linger=0)
    with ConnectionPool(options) as pool, SessionManager(path, pool=pool) as sessions:
        for number in range(TALKS):
            session = sessions.create_session(f"Talk {number}", metadata={"number": number})
            for index in range(ROUNDS):
                turns = [NewTurn(content=f"Answer {number}.{index} " + "word " * (150 * index))]
                sessions.record_round(session.id, f"Question {number}.{index}", turns)
    return path


@pytest.fixture
def damaged(sound: Path, path: Path) -> Path:
    """A copy of the sound database, to damage."""
    shutil.copy(sound, path)
    return path


def pages_of(path: Path, name: str) -> list[int]:
    """Return the leaf pages of a table or index of a sound file, in order."""
    raw = apsw.Connection(str(path))
    try:
        return [
            int(str(page))
            for (page,) in raw.execute(
                "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY pageno",
                (name,),
            ).fetchall()
        ]
    finally:
        raw.close()


def spoil(path: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def zero(path: Path, *pages: int) -> None:
    def change(data: bytearray) -> None:
        for page in pages:
            data[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)

    spoil(path, change)


def run(path: Path) -> SalvageReport:
    """Salvage it, and make sure of what holds of every result."""
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    new = path.with_name("new.sqlite")
    report = salvage(path, new)
    assert verify(new) == []
    assert {each: path.with_name(each).read_bytes() for each in before} == before
    assert not [name for name in os.listdir(path.parent) if "partial" in name]
    return report


def of(report: SalvageReport, table: str) -> TableSalvage:
    return next(each for each in report.tables if each.table == table)


def known_of(report: SalvageReport, table: str) -> int:
    """Return how many rows of a table are known to have been there."""
    counts = of(report, table)
    return counts.kept + counts.mended + counts.rebuilt + counts.lost


def history(path: Path, pool: ConnectionPool) -> dict[str | None, list[tuple[str, list[str]]]]:
    """Return each talk: its requests with their answers."""
    with SessionManager(path, pool=pool, create=False) as sessions:
        return {
            session.title: [
                (each.request.content, [turn.content for turn in each.turns])
                for each in sessions.render_session_history(session.id).rounds
            ]
            for session in sessions.list_sessions()
        }


def new_of(path: Path) -> Path:
    return path.with_name("new.sqlite")


# -- a sound file ---------------------------------------------------------------------------------


def test_all_of_a_sound_file_is_kept(damaged: Path, pool: ConnectionPool) -> None:
    before = history(damaged, pool)

    report = run(damaged)

    assert report.is_complete
    assert of(report, "turns") == TableSalvage("turns", TALKS * ROUNDS, 0, 0, 0, True)
    assert history(new_of(damaged), pool) == before


def test_the_new_file_can_be_written(damaged: Path, pool: ConnectionPool) -> None:
    run(damaged)

    with SessionManager(new_of(damaged), pool=pool) as sessions:
        session = sessions.list_sessions()[0]
        assert sessions.create_round(session.id, "And?").index == ROUNDS
    assert diagnose(new_of(damaged), full=True).status == "ok"


def test_deleted_rows_stay_deleted(damaged: Path, pool: ConnectionPool) -> None:
    with SessionManager(damaged, pool=pool) as sessions:
        sessions.delete_session(sessions.list_sessions()[2].id)

    report = run(damaged)

    assert not report.may_hold_deleted
    assert of(report, "sessions").kept == TALKS - 1
    assert of(report, "turns").kept == (TALKS - 1) * ROUNDS


def test_salvage_knows_the_width_of_each_table_that_it_finds_by_it() -> None:
    """A column that a migration adds needs an entry in ``TABLE_OF_WIDTH``; the old one stays."""
    widths = {table: len(columns) for table, columns in TABLES.items()}
    by_width = set(TABLE_OF_WIDTH.values())

    assert {TABLE_OF_WIDTH.get(widths[table]) for table in by_width} == by_width
    assert not {widths[table] for table in widths.keys() - by_width} & TABLE_OF_WIDTH.keys()


def test_a_row_that_is_older_than_a_column_counts_as_whole() -> None:
    """ALTER TABLE ADD COLUMN writes no row: a row from before it ends one value earlier."""
    values = ("id", "shop", "/srv/shop", None, 1)
    names = [column.name for column in TABLES["workspaces"]]

    found = repaired("workspaces", Record(1, values, len(values), len(values), False))

    assert found == (dict(zip(names, (*values, None), strict=True)), False)


# -- lost pages -----------------------------------------------------------------------------------


def test_lost_answers_are_counted_and_the_rest_is_there(
    damaged: Path, pool: ConnectionPool
) -> None:
    before = history(damaged, pool)
    zero(damaged, pages_of(damaged, "turns")[1])

    report = run(damaged)

    turns = of(report, "turns")
    assert turns.lost > 0
    assert turns.is_all_known
    assert turns.kept + turns.mended + turns.lost == TALKS * ROUNDS
    after = history(new_of(damaged), pool)
    assert [len(talk) for talk in after.values()] == [len(talk) for talk in before.values()]
    # An index that is lost is not given again.
    with SessionManager(new_of(damaged), pool=pool) as sessions:
        for session in sessions.list_sessions():
            for each in sessions.list_rounds(session.id):
                assert sessions.create_turn(each.response.id).index == 1


@pytest.mark.parametrize("table", ["sessions", "rounds", "responses"])
def test_rows_that_only_link_others_are_rebuilt_from_the_indexes(
    damaged: Path, pool: ConnectionPool, table: str
) -> None:
    before = history(damaged, pool)
    zero(damaged, *pages_of(damaged, table))

    report = run(damaged)

    assert of(report, table).rebuilt > 0
    assert known_of(report, table) == (TALKS if table == "sessions" else TALKS * ROUNDS)
    assert of(report, table).lost == 0
    assert of(report, "turns").kept == TALKS * ROUNDS
    after = history(new_of(damaged), pool)
    if table == "sessions":
        # Their titles were nowhere else.
        assert list(after) == ["(The title was lost.)"]
    else:
        assert after == before


def test_a_lost_request_has_a_placeholder(damaged: Path, pool: ConnectionPool) -> None:
    zero(damaged, *pages_of(damaged, "requests"))

    report = run(damaged)

    assert of(report, "requests") == TableSalvage("requests", 0, 0, TALKS * ROUNDS, 0, True)
    after = history(new_of(damaged), pool)
    assert {request for talk in after.values() for request, _ in talk} == {LOST_REQUEST}
    assert all(answers for talk in after.values() for _, answers in talk)


def test_answers_come_back_where_every_index_is_lost_too(
    damaged: Path, pool: ConnectionPool
) -> None:
    """The tables of sessions, rounds and responses, and all that knows of them."""
    raw = apsw.Connection(str(damaged))
    names = [str(row[0]) for row in raw.execute("SELECT DISTINCT name FROM dbstat").fetchall()]
    raw.close()
    lost = [name for name in names if name in ("sessions", "responses") or "ix_" in name]
    lost += [name for name in names if name.startswith("sqlite_autoindex")]
    before = history(damaged, pool)
    zero(damaged, *(page for name in lost for page in pages_of(damaged, name)))

    report = run(damaged)

    assert not of(report, "sessions").is_all_known
    # Known by the ids of a round and its response, which were made one after the other.
    with SessionManager(new_of(damaged), pool=pool) as sessions:
        after = [
            (each.request.content, [turn.content for turn in each.turns])
            for session in sessions.list_sessions()
            for each in sessions.render_session_history(session.id).rounds
        ]
    assert sorted(after) == sorted(each for talk in before.values() for each in talk)


def test_a_long_text_is_kept_as_far_as_it_goes(damaged: Path, pool: ConnectionPool) -> None:
    raw = apsw.Connection(str(damaged))
    rows = raw.execute(
        "SELECT pageno FROM dbstat WHERE name = 'turns' AND pagetype = 'overflow'"
    ).fetchall()
    raw.close()
    zero(damaged, int(str(rows[-1][0])))

    report = run(damaged)

    turns = of(report, "turns")
    assert (turns.mended, turns.lost, turns.kept) == (1, 0, TALKS * ROUNDS - 1)


def test_a_schema_that_is_gone_hides_nothing(damaged: Path, pool: ConnectionPool) -> None:
    before = history(damaged, pool)
    zero(damaged, 1)

    report = run(damaged)

    assert report.may_hold_deleted
    assert history(new_of(damaged), pool) == before


def test_a_file_that_is_cut_off_gives_what_is_left(damaged: Path, pool: ConnectionPool) -> None:
    spoil(damaged, lambda data: data.__delitem__(slice(len(data) // 2, None)))

    report = run(damaged)

    assert 0 < of(report, "turns").kept < TALKS * ROUNDS
    assert history(new_of(damaged), pool)


@pytest.mark.parametrize("table", ["requests", "responses", "rounds", "sessions", "turns"])
def test_each_row_that_was_there_is_counted_once(
    damaged: Path, pool: ConnectionPool, table: str
) -> None:
    """Kept, repaired, rebuilt and lost are together what was there, also where an index is lost."""
    zero(damaged, pages_of(damaged, table)[0])
    raw = apsw.Connection(str(damaged))
    indexes = [
        str(name)
        for name, origin in raw.execute(f"SELECT name, origin FROM pragma_index_list('{table}')")
        if origin != "pk"
    ]
    raw.close()
    zero(damaged, *(page for name in indexes for page in pages_of(damaged, name)))

    report = run(damaged)

    counts = of(report, table)
    assert counts.is_all_known
    assert counts.kept < known_of(report, table)
    assert known_of(report, table) == (TALKS if table == "sessions" else TALKS * ROUNDS)


# -- damaged values -------------------------------------------------------------------------------


def test_impossible_texts_and_values_are_repaired(damaged: Path, pool: ConnectionPool) -> None:
    raw = apsw.Connection(str(damaged))
    raw.execute("PRAGMA ignore_check_constraints = ON")
    raw.execute("UPDATE turns SET content = CAST(x'ff41' AS TEXT) WHERE rowid = 1")
    raw.execute("UPDATE turns SET status = 'nonsense', current_tokens = -7 WHERE rowid = 2")
    raw.execute("UPDATE turns SET status = 'streaming' WHERE rowid = 3")
    raw.execute("UPDATE sessions SET next_round_index = 0")
    raw.execute("UPDATE rounds SET created_at = 9223372036854775807 WHERE rowid = 1")
    raw.close()

    report = run(damaged)

    assert of(report, "turns").mended == 3
    with SessionManager(new_of(damaged), pool=pool) as sessions:
        turns = [
            turn
            for session in sessions.list_sessions()
            for each in sessions.render_session_history(session.id).rounds
            for turn in each.turns
        ]
        rounds = [sessions.create_round(each.id, "?").index for each in sessions.list_sessions()]
    assert rounds == [ROUNDS] * TALKS
    assert "�A" in {turn.content for turn in turns}
    statuses = sorted(turn.status for turn in turns)
    assert statuses[-2:] == [TurnStatus.INTERRUPTED] * 2
    assert all(turn.created_at.year >= 2024 for turn in turns)


def test_a_garbled_id_is_taken_from_the_index(damaged: Path, pool: ConnectionPool) -> None:
    before = history(damaged, pool)
    raw = apsw.Connection(str(damaged))
    ((id,),) = raw.execute("SELECT id FROM rounds WHERE rowid = 5").fetchall()
    raw.close()
    assert isinstance(id, str)
    page = next(n for n in pages_of(damaged, "rounds") if id.encode() in page_bytes(damaged, n))

    def garble(data: bytearray) -> None:
        at = data.index(id.encode(), (page - 1) * PAGE)
        data[at + 30] ^= 1

    spoil(damaged, garble)
    run(damaged)

    assert history(new_of(damaged), pool) == before


def page_bytes(path: Path, number: int) -> bytes:
    return path.read_bytes()[(number - 1) * PAGE : number * PAGE]


def test_swapped_pages_are_recognized(damaged: Path, pool: ConnectionPool) -> None:
    before = history(damaged, pool)
    one, two = pages_of(damaged, "requests")[0], pages_of(damaged, "turns")[0]

    def swap(data: bytearray) -> None:
        first, second = (slice((n - 1) * PAGE, n * PAGE) for n in (one, two))
        data[first], data[second] = data[second], data[first]

    spoil(damaged, swap)
    run(damaged)

    assert history(new_of(damaged), pool) == before


# -- the log --------------------------------------------------------------------------------------


@pytest.fixture
def logged(path: Path) -> Path:
    """A database of which most is in the log."""
    code = (
        "import os, sys\n"
        "from mandrake_sessions import SessionManager, NewTurn\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "session = sessions.create_session('In the log')\n"
        "for number in range(20):\n"
        "    sessions.record_round(session.id, f'Q{number}', [NewTurn(content='A' * 3000)])\n"
        "os._exit(0)"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True)
    return path


def frames(log: Path) -> int:
    return (log.stat().st_size - 32) // (PAGE + 24)


def test_the_log_is_read(logged: Path, pool: ConnectionPool) -> None:
    report = run(logged)

    assert report.lost_frames == 0
    assert len(history(new_of(logged), pool)["In the log"]) == 20


def test_frames_behind_a_damaged_one_count(logged: Path, pool: ConnectionPool) -> None:
    """SQLite itself reads a log up to the first damaged frame, and forgets the rest."""
    log = Path(f"{logged}-wal")
    middle = frames(log) // 2

    def garble(data: bytearray) -> None:
        data[32 + middle * (PAGE + 24) + 24 + 2000] ^= 0xFF

    spoil(log, garble)
    copy = logged.with_name("by-sqlite.sqlite")
    shutil.copy(logged, copy)
    shutil.copy(log, f"{copy}-wal")
    raw = apsw.Connection(str(copy))
    seen = raw.execute("SELECT count(*) FROM turns").fetchall()[0][0]
    raw.close()

    report = salvage(logged, new_of(logged))

    assert report.lost_frames == 1
    assert of(report, "turns").kept >= 19 > int(str(seen))


def test_the_head_of_the_log_may_be_lost(logged: Path, pool: ConnectionPool) -> None:
    spoil(Path(f"{logged}-wal"), lambda data: struct.pack_into("8I", data, 0, *range(8)))

    salvage(logged, new_of(logged))

    assert len(history(new_of(logged), pool)["In the log"]) == 20


def test_uncommitted_frames_are_left_out(logged: Path, pool: ConnectionPool) -> None:
    log = Path(f"{logged}-wal")

    def uncommit(data: bytearray) -> None:
        # The last frame's mark, with which its checksum is wrong: its commit did not arrive.
        at = 32 + (frames(log) - 1) * (PAGE + 24)
        data[at + 4 : at + 8] = bytes(4)

    spoil(log, uncommit)
    report = salvage(logged, new_of(logged))

    assert of(report, "turns").kept == 19


# -- what is refused ------------------------------------------------------------------------------


def test_an_existing_target_stays(damaged: Path) -> None:
    with pytest.raises(SalvageError, match="exists"):
        salvage(damaged, damaged)
    with pytest.raises(SalvageError, match="folder"):
        salvage(damaged, damaged.parent / "nowhere" / "new.sqlite")
    with pytest.raises(DatabaseMissingError):
        salvage(damaged.parent / "nothing", damaged.parent / "new.sqlite")


def another_programs(path: Path) -> None:
    raw = apsw.Connection(str(path))
    raw.execute("CREATE TABLE requests (id TEXT PRIMARY KEY, a TEXT, b TEXT, c INTEGER, d INTEGER)")
    raw.execute("INSERT INTO requests VALUES ('a', 'b', 'c', 1, 2)")
    raw.close()


@pytest.mark.parametrize(
    "make",
    [
        *(
            lambda path, size=size: path.write_bytes(random.Random(size).randbytes(size))
            for size in (0, 1, 512, 100_000)
        ),
        lambda path: path.write_bytes(Path(__file__).read_bytes() * 20),
        lambda path: path.write_bytes(Path(__file__).read_bytes().replace(b"\n", b"\r\n") * 20),
        lambda path: path.write_bytes(bytes(100_000)),
        another_programs,
    ],
    ids=["empty", "a byte", "a header", "noise", "text", "dos text", "zeros", "another program's"],
)
def test_a_file_of_another_program_gives_no_copy(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "not-ours"
    make(path)
    before = path.read_bytes()

    with pytest.raises(SalvageError, match="No row of this library") as caught:
        salvage(path, new_of(path))

    assert caught.value.path == path
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


def test_an_empty_database_of_the_library_is_recognized(path: Path, pool: ConnectionPool) -> None:
    with SessionManager(path, pool=pool):
        pass

    assert run(path).is_complete


@pytest.mark.parametrize("mark", [16, 100])
def test_a_destroyed_header_hides_nothing(damaged: Path, pool: ConnectionPool, mark: int) -> None:
    before = history(damaged, pool)
    spoil(damaged, lambda data: data.__setitem__(slice(100 - mark, 100), bytes(mark)))
    spoil(damaged, lambda data: data.__setitem__(slice(68, 72), bytes(4)))

    run(damaged)

    assert history(new_of(damaged), pool) == before


def test_a_table_of_another_program_is_named(damaged: Path) -> None:
    raw = apsw.Connection(str(damaged))
    raw.execute("CREATE TABLE theirs (a TEXT, b TEXT, c TEXT, d INTEGER, e INTEGER)")
    raw.execute("INSERT INTO theirs VALUES ('a', 'b', 'c', 1, 2)")
    raw.close()

    report = run(damaged)

    assert report.left_out == ("theirs",)
    assert of(report, "requests").kept == TALKS * ROUNDS


def test_the_locks_of_an_open_database_stay(damaged: Path, pool: ConnectionPool) -> None:
    with pool.acquire(damaged):
        before = own_lock_lines([damaged])
        assert before
        salvage(damaged, new_of(damaged))
        diagnose(damaged, full=True)
        assert own_lock_lines([damaged]) == before


# -- hostile files and full disks -----------------------------------------------------------------


def test_a_frame_for_a_page_far_away_takes_no_time(damaged: Path) -> None:
    """The head of the log is damaged, so nothing shows that the first frame is too."""
    head = struct.pack(">8I", 0x377F0682, 3_007_000, PAGE, 0, 1, 2, 9, 9)
    frame = struct.pack(">6I", 0xFFFFFFF0, 5, 1, 2, 0, 0) + damaged.read_bytes()[PAGE : 2 * PAGE]
    Path(f"{damaged}-wal").write_bytes(head + frame)

    report = run(damaged)

    assert report.pages == damaged.stat().st_size // PAGE + 1
    assert of(report, "turns").kept == TALKS * ROUNDS


def test_a_chain_that_all_rows_claim_takes_no_time(tmp_path: Path) -> None:
    """Each of 400 cells of 40 pages says that its text goes on through the same 40 pages."""
    count = 40
    first = bytearray(PAGE)
    first[:24] = b"SQLite format 3\0" + struct.pack(">H", PAGE) + bytes((2, 2, 0, 64, 32, 32))
    first[28:32] = struct.pack(">I", 2 * count + 1)
    first[100] = 13
    leaf = bytearray(PAGE)
    length = count * (PAGE - 4)
    start = bytes((0x80 | length >> 14, 0x80 | length >> 7 & 0x7F, length & 0x7F, 1))
    leaf[0], leaf[3:5] = 13, struct.pack(">H", 400)
    leaf[8:808] = struct.pack(">H", 900) * 400
    leaf[900:904] = start
    least = (PAGE - 12) * 32 // 255 - 23
    local = least + (length - least) % (PAGE - 4)
    local = local if local <= PAGE - 35 else least
    leaf[904 + local : 908 + local] = struct.pack(">I", count + 2)
    chain = [
        struct.pack(">I", number + 1 if number <= 2 * count else 0) + b"x" * (PAGE - 4)
        for number in range(count + 2, 2 * count + 2)
    ]
    path = tmp_path / "db.sqlite"
    path.write_bytes(bytes(first) + bytes(leaf) * count + b"".join(chain))

    with open_pages(path) as pages:
        for number in pages.numbers():
            parse(pages, number)
        assert pages.may_follow()
        assert pages._followed < 3 * count * count


def test_a_disk_that_holds_the_log_and_not_the_file_too_gives_no_file(
    damaged: Path, small_disk: Path, pool: ConnectionPool
) -> None:
    """Closing a file copies its log into it, and keeps silent where that fails."""
    with SessionManager(damaged, pool=pool) as sessions:
        sessions.create_session("Long", description="x" * 3_500_000)

    with pytest.raises(StorageFullError):
        salvage(damaged, small_disk / "new.sqlite")

    assert os.listdir(small_disk) == []
