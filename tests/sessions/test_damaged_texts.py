"""A text that is not UTF-8 is one bad value: it comes back with U+FFFD, and all else goes on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
import sqlalchemy
from structlog.testing import capture_logs

from mandrake_sessions import (
    BackupError,
    ConnectionPool,
    DatabaseError,
    HealthLevel,
    HealthStatus,
    MandrakeManager,
    NewTurn,
    NotFoundError,
    SchemaTooNewError,
    Session,
    SessionHistory,
    SessionManager,
    SessionUpdate,
    TurnStatus,
)
from mandrake_sessions.database.connection import damaged_text
from mandrake_sessions.engine.statement import Statement
from mandrake_sessions.records import sql
from mandrake_sessions.records.templates import UpdateSome
from mandrake_sessions.rescue.diagnosis import diagnose
from mandrake_sessions.tables import TABLES

BAD = {
    "a character that is cut": b"\xc3",
    "an overlong encoding": b"\xc0\xaf",
    "a surrogate": b"\xed\xa0\xbd",
    "a byte that continues nothing": b"a\x80\x00z",
}
TEXT_COLUMNS = [
    (table, column.name)
    for table, columns in TABLES.items()
    for column in columns
    if column.kind == "TEXT"
]
KEYS = {"turn_chunks": "turn_id || seq", "meta": "key"}
"""What names a row of a table without a rowid."""
NUMBERS = ("limit", "offset")
INDEX = "ix_sessions_updated_at_id"
FAILED = HealthStatus.FAILED


@pytest.fixture(autouse=True)
def nothing_named_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damaged_text, "_named", {})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as a dead host has left it: three sessions, each with a turn that streams."""
    folder = tmp_path_factory.mktemp("sound")
    with ConnectionPool() as pool, MandrakeManager(folder / "root", pool=pool) as mandrake:
        for name in ("shop", "yard"):
            mandrake.create_workspace(name, f"what {name} is for")
        sessions = mandrake.sessions
        writers = []
        for number in range(3):
            session = sessions.create_session(f"title {number}", "about", {"key": f"meta {number}"})
            done = NewTurn(
                content=f"answer {number}",
                raw_response="raw",
                model="any",
                error_message="none",
                tool_calls=[{"call": {"name": f"tool {number}"}, "response": 1}],
            )
            exchange = sessions.record_round(session.id, f"question {number}", [done])
            turn = sessions.stream_turn(exchange.response.id, model="any")
            turn.write(f"text {number}")
            turn.write_raw(f"raw text {number}")
            turn.flush()
            writers.append(turn)
        # As it is while they stream: closing would end them.
        sessions.backup(folder / "db.sqlite")
        for turn in writers:
            turn.interrupt()
    return folder / "db.sqlite"


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the sound file in which the last text of a column has bad bytes."""

    def damage(table: str, column: str, bad: bytes = BAD["a character that is cut"]) -> Path:
        path = tmp_path / "root" / "db.sqlite"
        path.parent.mkdir()
        shutil.copy(sound, path)
        raw = apsw.Connection(str(path))
        raw.execute("PRAGMA foreign_keys = off; PRAGMA ignore_check_constraints = on")
        key = KEYS.get(table, "rowid")
        *_, (last,) = raw.execute(f"SELECT {key} FROM {table} ORDER BY 1")
        raw.execute(
            f"""UPDATE {table} SET "{column}" = CAST(CAST("{column}" AS BLOB) || ? AS TEXT)
            WHERE {key} = ?""",
            (bad, last),
        )
        raw.close()
        return path

    return damage


def outcomes(*calls: Callable[..., object]) -> Iterator[Exception | None]:
    for call in calls:
        try:
            call()
        except DatabaseError as error:
            yield error
        except NotFoundError:
            # A row whose id is damaged is not found by it.
            yield None
        else:
            yield None


def use_everything(sessions: SessionManager) -> list[Exception | None]:
    """Call what reads and writes, for each session and what hangs on it."""
    found = list(outcomes(sessions.list_sessions, lambda: sessions.list_sessions(limit=1)))
    for session in sessions.list_sessions():
        id = session.id
        found += outcomes(
            lambda id=id: sessions.get_session(id),
            lambda id=id: sessions.get_current_round(id),
            lambda id=id: list(sessions.iter_session_history(id)),
            lambda id=id: sessions.get_session_usage(id),
            lambda id=id: sessions.update_session(id, description="new"),
            lambda id=id: sessions.create_round(id, "new"),
        )
        for round_ in sessions.list_rounds(id) if sessions.find_session(id) else ():
            response = round_.response.id
            found += outcomes(
                lambda it=round_: sessions.update_request(it.request.id, content="new"),
                lambda it=response: sessions.get_streaming_status(it),
                lambda it=response: sessions.create_turn(it, status="completed"),
            )
            for exchange in sessions.render_session_history(id).rounds:
                for turn in exchange.turns:
                    found += outcomes(
                        lambda it=turn: sessions.get_turn(it.id),
                        lambda it=turn: sessions.update_turn(it.id, input_tokens=1),
                        lambda it=turn: sessions.delete_turn(it.id),
                    )
            found += outcomes(lambda it=round_: sessions.delete_round(it.id))
        found += outcomes(lambda id=id: sessions.delete_session(id))
    found += outcomes(sessions.create_session)
    return found


@pytest.mark.parametrize(("table", "column"), TEXT_COLUMNS)
def test_whichever_text_is_damaged_everything_goes_on(
    damaged: Callable[..., Path], pool: ConnectionPool, table: str, column: str
) -> None:
    path = damaged(table, column)
    with MandrakeManager(path.parent, pool=pool) as mandrake:
        assert len(mandrake.list_workspaces()) == 2
        mandrake.create_workspace("new")
        assert [error for error in use_everything(mandrake.sessions) if error] == []
        assert mandrake.sessions.health().status is HealthStatus.OK


READ: dict[str, Callable[[SessionHistory], str | None]] = {
    "sessions.title": lambda history: history.session.title,
    "requests.content": lambda history: history.rounds[0].request.content,
    "turns.content": lambda history: history.rounds[0].turns[-1].content,
    "turns.model": lambda history: history.rounds[0].turns[-1].model,
    "turn_chunks.raw_response": lambda history: history.rounds[0].turns[-1].raw_response,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("place", READ)
def test_bad_bytes_are_read_as_replacement_characters(
    damaged: Callable[..., Path], pool: ConnectionPool, place: str, bad: bytes
) -> None:
    path = damaged(*place.split("."), bad)
    replaced = bad.decode(errors="replace")
    with SessionManager(path, pool=pool) as sessions:
        histories = [sessions.render_session_history(it.id) for it in sessions.list_sessions()]
        texts = [READ[place](it) or "" for it in histories]
    assert [replaced in text for text in texts].count(True) == 1
    assert "\ufffd" not in "".join(texts).replace(replaced, "")


def test_json_with_bad_bytes_is_read_if_it_is_json_without_them(
    damaged: Callable[..., Path], pool: ConnectionPool
) -> None:
    path = damaged("sessions", "title")
    raw = apsw.Connection(str(path))
    raw.execute("UPDATE sessions SET metadata = CAST(x'7b2261223a22c3227d' AS TEXT)")
    raw.execute("""UPDATE turns SET tool_calls = CAST(x'5b7b2263616c6c223a22c3227d5d' AS TEXT)""")
    raw.close()
    with SessionManager(path, pool=pool) as sessions:
        for session in sessions.list_sessions():
            assert session.metadata == {"a": "\ufffd"}
            for turn in sessions.render_session_history(session.id).rounds[0].turns:
                assert [call.call for call in turn.tool_calls] == ["\ufffd"]


def test_one_event_names_the_value_and_only_where_it_is(
    damaged: Callable[..., Path], pool: ConnectionPool
) -> None:
    path = damaged("sessions", "title")
    with capture_logs() as events, SessionManager(path, pool=pool) as sessions:
        for _ in range(3):
            sessions.list_sessions()
        (last,) = [it for it in sessions.list_sessions() if "\ufffd" in (it.title or "")]
        sessions.get_session(last.id)
        sessions.update_session(last.id, description="new")

    assert [event for event in events if event["event"] == "text_not_utf8"] == [
        {
            "event": "text_not_utf8",
            "log_level": "warning",
            "path": str(path),
            "table": "sessions",
            "column": "title",
            "id": last.id,
        }
    ]


def test_a_change_that_returns_a_damaged_text_happens_once(
    damaged: Callable[..., Path], pool: ConnectionPool
) -> None:
    path = damaged("turns", "content")
    with SessionManager(path, pool=pool) as sessions:
        found = [
            turn
            for session in sessions.list_sessions()
            for turn in sessions.render_session_history(session.id).rounds[0].turns
        ]
        (turn,) = [each for each in found if "\ufffd" in each.content]
        changed = sessions.update_turn(turn.id, input_tokens=5)
        assert (changed.revision, changed.input_tokens) == (turn.revision + 1, 5)
        assert changed == sessions.get_turn(turn.id)
        with sessions.transaction() as tx:
            tx.update_turn(turn.id, input_tokens=6)
            again = tx.update_turn(turn.id, input_tokens=7)
        assert again.revision == turn.revision + 3
        mended = sessions.update_turn(turn.id, content="mended")
        assert mended.content == "mended"


def test_a_turn_whose_owner_is_damaged_does_not_stream_without_end(
    damaged: Callable[..., Path], pool: ConnectionPool
) -> None:
    path = damaged("turns", "owner")
    with SessionManager(path, pool=pool) as sessions:
        for session in sessions.list_sessions():
            turns = sessions.render_session_history(session.id).rounds[0].turns
            assert TurnStatus.STREAMING not in [turn.status for turn in turns]


def test_a_status_that_is_damaged_counts_as_interrupted(
    damaged: Callable[..., Path], pool: ConnectionPool
) -> None:
    path = damaged("sessions", "title")
    raw = apsw.Connection(str(path))
    raw.execute("PRAGMA ignore_check_constraints = on")
    raw.execute("UPDATE turns SET status = 'complfted' WHERE content = 'answer 2'")
    raw.close()
    with capture_logs() as events, SessionManager(path, pool=pool) as sessions:
        turns = [
            turn
            for session in sessions.list_sessions()
            for turn in sessions.render_session_history(session.id).rounds[0].turns
        ]
        sessions.create_session()

    (named,) = [event["turn_id"] for event in events if event["event"] == "status_unreadable"]
    (turn,) = [turn for turn in turns if turn.id == named]
    assert (turn.status, turn.content) == (TurnStatus.INTERRUPTED, "answer 2")
    assert "database_corrupt" not in [event["event"] for event in events]


def test_pages_behind_a_session_whose_id_is_damaged_come_to_an_end(
    damaged: Callable[..., Path], pool: ConnectionPool
) -> None:
    path = damaged("sessions", "id")
    with SessionManager(path, pool=pool) as sessions:
        seen: list[Session] = []
        page = sessions.list_sessions(limit=1)
        while page and len(seen) < 10:
            seen += page
            page = sessions.list_sessions(limit=1, after=page[-1])
        assert seen == sessions.list_sessions()


@pytest.mark.parametrize("column", ["session_id", "entity", "id", "op"])
def test_a_watcher_goes_on_behind_a_damaged_change(
    damaged: Callable[..., Path], pool: ConnectionPool, column: str
) -> None:
    path = damaged("sessions", "description")
    with SessionManager(path, pool=pool) as sessions:
        session = sessions.list_sessions()[-1]
        with sessions.watch_session(session.id) as watch:
            assert watch.receive(10) is not None
            raw = apsw.Connection(str(path))
            raw.set_busy_timeout(10_000)
            raw.execute("PRAGMA ignore_check_constraints = on")
            columns = {"session_id": "?1", "entity": "'session'", "id": "?1", "op": "'update'"}
            columns[column] = "CAST(x'c3' AS TEXT)"
            raw.execute(
                f"INSERT INTO changes ({', '.join(columns)}) SELECT {', '.join(columns.values())}"
                " FROM (SELECT ?1)",
                (session.id,),
            )
            raw.close()
            sessions.update_session(session.id, title="behind it")
            assert any(
                isinstance(event, SessionUpdate)
                and event.session is not None
                and event.session.title == "behind it"
                for event in iter(lambda: watch.receive(10), None)
            )


def test_a_damaged_text_is_read_through_sqlalchemy_too(
    damaged: Callable[..., Path], pool: ConnectionPool
) -> None:
    path = damaged("sessions", "title")
    with (
        SessionManager(path, pool=pool) as sessions,
        sessions.handle.sqlalchemy() as connection,
    ):
        query = sqlalchemy.text(
            "WITH them AS (SELECT title, x'ff' AS bytes, 1 AS n FROM sessions) "
            "SELECT * FROM them WHERE n = :one ORDER BY title DESC"
        )
        rows = connection.execute(query, {"one": 1}).all()
    assert rows == [
        ("title 2\ufffd", b"\xff", 1),
        ("title 1", b"\xff", 1),
        ("title 0", b"\xff", 1),
    ]


def test_the_doctor_names_a_damaged_text_and_the_file_stays_usable(
    damaged: Callable[..., Path],
) -> None:
    report = diagnose(damaged("turns", "content"))
    (texts,) = [each for each in report.checks if each.name == "texts"]
    assert (texts.status, texts.detail) == (
        HealthStatus.DEGRADED,
        "rows with a damaged text: 1 in turns",
    )
    assert report.is_usable


def test_a_backup_of_a_damaged_text_can_be_made_and_read(
    damaged: Callable[..., Path], pool: ConnectionPool, tmp_path: Path
) -> None:
    path = damaged("requests", "content")
    with SessionManager(path, pool=pool) as sessions:
        assert sessions.health(HealthLevel.FULL).is_usable
        sessions.backup(tmp_path / "copy.sqlite")
        before = sessions.list_sessions()
    with SessionManager(tmp_path / "copy.sqlite", pool=pool) as sessions:
        assert sessions.list_sessions() == before


@pytest.mark.parametrize(("table", "column"), TEXT_COLUMNS)
def test_whichever_text_is_damaged_backups_go_on(
    damaged: Callable[..., Path], pool: ConnectionPool, tmp_path: Path, table: str, column: str
) -> None:
    path = damaged(table, column)
    copy, restored = tmp_path / "copy.sqlite", tmp_path / "restored.sqlite"
    if table == "alembic_version":
        pytest.skip("A revision that is damaged is an unknown one.")
    with SessionManager(path, pool=pool) as sessions:
        before = sessions.list_sessions()
        sessions.backup(copy)
    pool.restore(copy, restored)
    pool.restore(path, tmp_path / "of a file.sqlite")
    with SessionManager(restored, pool=pool) as sessions:
        assert sessions.list_sessions() == before
        assert [error for error in use_everything(sessions) if error] == []
    assert not [check for check in diagnose(path, full=True).checks if check.status is FAILED]


def places_of(data: bytes | bytearray, text: bytes) -> list[int]:
    """Return where the last byte of each occurrence of a text stands, in rows and in indexes."""
    return [found.end() - 1 for found in re.finditer(re.escape(text), data)]


@pytest.mark.parametrize("which", range(5))
def test_a_byte_of_an_id_in_a_row_or_in_an_index_costs_no_backup(
    pool: ConnectionPool, tmp_path: Path, which: int
) -> None:
    path, copy = tmp_path / "db.sqlite", tmp_path / "copy.sqlite"
    with SessionManager(path, pool=pool) as sessions:
        for name in ("the-first", "the-other", "the-third"):
            sessions.create_session("title", id=name)
            sessions.record_round(name, "question", [NewTurn(content="answer")])
    data = bytearray(path.read_bytes())
    data[places_of(data, b"the-other")[which]] = 0xC3
    path.write_bytes(data)

    with capture_logs() as events, SessionManager(path, pool=pool) as sessions:
        sessions.backup(copy)
    assert "copy_reindexed" in [event["event"] for event in events]
    with SessionManager(copy, pool=pool) as sessions:
        assert len(sessions.list_sessions()) == 3
        assert [error for error in use_everything(sessions) if error] == []
    # The file itself is not mended, and what looks at it says so.
    assert [check.name for check in diagnose(path, full=True).checks if check.status is FAILED]
    pool.restore(path, tmp_path / "restored.sqlite")


def test_a_row_without_its_parent_still_gives_no_backup(
    damaged: Callable[..., Path], pool: ConnectionPool, tmp_path: Path
) -> None:
    """One damaged id explains the loss of one parent, and not of two."""
    path = damaged("sessions", "id")
    raw = apsw.Connection(str(path))
    raw.execute("PRAGMA foreign_keys = off; DELETE FROM sessions WHERE rowid = 1")
    raw.close()
    with SessionManager(path, pool=pool) as sessions, pytest.raises(BackupError, match="refers"):
        sessions.backup(tmp_path / "copy.sqlite")


@pytest.mark.parametrize("bad", [False, True])
def test_an_index_that_lacks_rows_for_another_reason_still_gives_no_backup(
    damaged: Callable[..., Path], pool: ConnectionPool, tmp_path: Path, bad: bool
) -> None:
    path = damaged("sessions", "id" if bad else "title")
    raw = apsw.Connection(str(path))
    raw.execute("PRAGMA writable_schema = on")
    raw.execute("UPDATE sqlite_schema SET sql = sql || ' WHERE 0' WHERE name = ?", (INDEX,))
    raw.close()
    raw = apsw.Connection(str(path))
    raw.execute(
        "INSERT INTO sessions (id, title, description, metadata, next_round_index, revision,"
        " created_at, updated_at) SELECT 'lost', title, description, metadata, 0, 0, 0, 0"
        " FROM sessions LIMIT 1"
    )
    raw.execute("PRAGMA writable_schema = on")
    raw.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, ' WHERE 0', '') WHERE name = ?", (INDEX,)
    )
    raw.close()
    with SessionManager(path, pool=pool) as sessions, pytest.raises(BackupError, match=INDEX):
        sessions.backup(tmp_path / "copy.sqlite")


def test_a_revision_that_is_damaged_is_an_unknown_one(
    damaged: Callable[..., Path], pool: ConnectionPool
) -> None:
    path = damaged("alembic_version", "version_num")
    with pytest.raises(SchemaTooNewError):
        SessionManager(path, pool=pool).init()
    assert not diagnose(path).is_usable
    with pytest.raises(SchemaTooNewError):
        pool.restore(path, path.with_name("other.sqlite"))


def test_each_statement_can_be_read_a_second_time(damaged: Callable[..., Path]) -> None:
    """A SELECT as it is; what a change returns, from the row it has changed."""
    raw = apsw.Connection(str(damaged("sessions", "title")))
    statements = [each for each in vars(sql).values() if isinstance(each, Statement)]
    statements += [
        each.of(each._settable) for each in vars(sql).values() if isinstance(each, UpdateSome)
    ]
    seen = 0
    for statement in statements:
        values = {name: 0 if name in NUMBERS else "[]" for name in statement.parameters}
        if statement.is_read:
            select, bound = statement.sql, statement.bind(values)
        elif " RETURNING " in statement.sql:
            assert not statement.sql.startswith("DELETE")
            returned = statement.sql.rpartition(" RETURNING ")[2]
            if returned in ("next_round_index", "next_turn_index"):
                continue  # No text.
            select, bound = damaged_text._reading_changed_row(Path(), statement.sql, values)
        else:
            continue
        columns = damaged_text._columns(raw, select, bound)
        assert columns
        width = len(columns)
        raw.execute(damaged_text._readable(select, width), bound).fetchall()
        seen += 1
    assert seen > 40
    raw.close()
