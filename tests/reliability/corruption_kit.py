"""Damages a real database file in a way that a number decides, and looks at what becomes of it.

Run as a program it is a process of its own, so that a crash or a hang of SQLite is seen: it gets
the folder of the sound files and numbers, and prints one line of JSON for each.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import structlog

from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    Durability,
    MandrakeSessionsError,
    NewTurn,
    PoolOptions,
    SessionManager,
    StaleLogError,
    diagnose,
    salvage,
)
from mandrake_sessions.database.connection.verification import verify

PAGE = 4096
TABLES = ("sessions", "rounds", "requests", "responses", "turns")
_WORDS = ("the", "lock", "is", "held", "by", "a", "writer", "that", "waits", "for", "others")
# Page size, versions, pages, free pages, stamp, application id.
_HEADER = (16, 18, 28, 32, 60, 68)


def build(folder: Path) -> None:
    """Make a database with a log, as a process leaves them that was killed."""
    child = os.fork()
    if child == 0:
        _write(folder / "db.sqlite")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    (folder / "db.sqlite-shm").unlink()


def _write(path: Path) -> None:
    rng = random.Random(7)
    options = DatabaseOptions(durability=Durability.FAST)

    def text(longest: int) -> str:
        return " ".join(rng.choice(_WORDS) for _ in range(rng.randrange(2, longest)))

    def talk(sessions: SessionManager, number: int) -> None:
        session = sessions.create_session(f"Talk {number}", metadata={"number": number})
        for _ in range(rng.randrange(2, 7)):
            turns = [
                NewTurn(
                    content=text(rng.choice((30, 200, 2000))),
                    raw_response=text(60),
                    tool_calls=[{"call": {"name": "read"}, "response": text(40)}],
                    output_tokens=12,
                )
                for _ in range(rng.randrange(1, 4))
            ]
            sessions.record_round(session.id, text(80), turns)

    with ConnectionPool(PoolOptions(database=options, linger=0)) as pool:
        with SessionManager(path, pool=pool) as sessions:
            for number in range(16):
                talk(sessions, number)
            sessions.delete_session(sessions.list_sessions()[3].id)
        sessions = SessionManager(path, pool=pool).init()
        for number in range(16, 22):
            talk(sessions, number)
        sessions.stream_turn(sessions.create_round(session_of(sessions), "And?").response.id)
        os._exit(0)


def session_of(sessions: SessionManager) -> str:
    """Return the id of some session."""
    return sessions.list_sessions()[0].id


# -- damage -----------------------------------------------------------------------------------


def _one_byte(data: bytearray, rng: random.Random) -> str:
    at = rng.randrange(len(data))
    data[at] ^= rng.randrange(1, 256)
    return "one byte"


def _block(data: bytearray, rng: random.Random) -> str:
    size = rng.choice((16, 64, 512, PAGE))
    at = rng.randrange(len(data) - size)
    data[at : at + size] = rng.randbytes(size)
    return "block"


def _zeros(data: bytearray, rng: random.Random) -> str:
    at = rng.randrange(len(data) // PAGE) * PAGE
    data[at : at + PAGE] = bytes(PAGE)
    return "zero page"


def _cut(data: bytearray, rng: random.Random) -> str:
    del data[rng.randrange(len(data)) :]
    return "cut off"


def _swap(data: bytearray, rng: random.Random) -> str:
    one, two = (rng.randrange(1, len(data) // PAGE) * PAGE for _ in range(2))
    data[one : one + PAGE], data[two : two + PAGE] = data[two : two + PAGE], data[one : one + PAGE]
    return "swapped pages"


def _header(data: bytearray, rng: random.Random) -> str:
    at = rng.choice((0, *_HEADER))
    data[at : at + 4] = rng.randbytes(4)
    return "header field"


def _page_head(data: bytearray, rng: random.Random) -> str:
    at = rng.randrange(1, len(data) // PAGE) * PAGE
    data[at : at + 12] = rng.randbytes(12)
    return "page head"


DAMAGES: list[Callable[[bytearray, random.Random], str]] = [
    _one_byte,
    _block,
    _zeros,
    _cut,
    _swap,
    _header,
    _page_head,
]


def damage(source: Path, folder: Path, number: int) -> str:
    """Put a damaged copy into an empty folder, with the log; return what was done."""
    rng = random.Random(number)
    parts = {suffix: bytearray(Path(f"{source}{suffix}").read_bytes()) for suffix in ("", "-wal")}
    which = "-wal" if number % 5 == 4 else ""
    kind = DAMAGES[number % len(DAMAGES)](parts[which], rng)
    for suffix, data in parts.items():
        Path(f"{folder / 'db.sqlite'}{suffix}").write_bytes(data)
    return f"{kind} of the {'log' if which else 'file'}"


# -- what becomes of it -------------------------------------------------------------------------


def contents(path: Path) -> dict[str, set[tuple[Any, ...]]]:
    """Return what a person would miss of each table."""
    columns = {
        "sessions": "id, title, metadata",
        "rounds": 'id, session_id, "index"',
        "requests": "id, round_id, content",
        "responses": "id, round_id",
        "turns": 'id, response_id, "index", content, tool_calls',
    }
    # Two processes read the sound one at once, and each would leave the sidecars of WAL mode.
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    raw = apsw.Connection(f"{path.as_uri()}?immutable=1", flags=flags)
    with contextlib.closing(raw):
        return {
            table: set(raw.execute(f"SELECT {names} FROM {table}").fetchall())
            for table, names in columns.items()
        }


def look(path: Path, kind: str, sound: dict[str, set[tuple[Any, ...]]]) -> dict[str, Any]:
    """Ask the doctor, salvage, and open a damaged database."""
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    report = diagnose(path, full=True)
    try:
        saved = salvage(path, path.parent / "salvaged.sqlite")
    except StaleLogError:
        # Damage of its first page can make its log look like another file's: as it is advised.
        log = path.with_name("db.sqlite-wal")
        log.rename(aside := log.with_name("log"))
        saved = salvage(path, path.parent / "salvaged.sqlite")
        aside.rename(log)
    (path.parent / "salvaged.sqlite").rename(new := path.parent / "new.sqlite")
    after = {each.name: each.read_bytes() for each in path.parent.iterdir() if each != new}
    assert verify(new) == []
    found = contents(new)
    outcome, detail = use(new)
    assert outcome == "works", (outcome, detail)
    outcome, detail = use(path)
    return {
        "kind": kind,
        "doctor": report.status,
        "failed": [check.name for check in report.checks if check.status == "failed"],
        "is_untouched": before == after,
        "saved": {table: len(rows & found[table]) for table, rows in sound.items()},
        "is_complete": saved.is_complete,
        "outcome": outcome,
        "detail": detail,
    }


def use(path: Path) -> tuple[str, str]:
    """Open, read all, write; return how it went: works, refused at a point, or raises."""
    at = "opening"
    options = DatabaseOptions(durability=Durability.FAST, busy_timeout=5.0)
    try:
        with ConnectionPool(PoolOptions(database=options, linger=0)) as pool:
            at = "opening"
            with SessionManager(path, pool=pool, create=False) as sessions:
                at = "reading"
                for session in sessions.list_sessions():
                    sessions.render_session_history(session.id)
                    sessions.get_session_usage(session.id)
                at = "writing"
                session = sessions.create_session("After the damage")
                response = sessions.record_round(session.id, "Hello?", [NewTurn(content="Yes.")])
                at = "reading again"
                sessions.list_turns(response.response.id)
            at = "closing"
    except (MandrakeSessionsError, ExceptionGroup) as error:
        found = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        return f"refused {at}", type(found).__name__
    except Exception as error:  # noqa: BLE001  # what should not be
        return f"raised {at}", f"{type(error).__name__}: {error}"
    return "works", ""


def main(folder: Path, numbers: list[int]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    source = folder / "db.sqlite"
    for number in numbers:
        place = folder / f"case-{number}"
        place.mkdir()
        print(json.dumps({"number": number}), flush=True)  # to the parent
        kind = damage(source, place, number)
        sound = contents(folder / "sound.sqlite")
        found = look(place / "db.sqlite", kind, sound)
        print(json.dumps({"number": number, **found}), flush=True)  # to the parent


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
