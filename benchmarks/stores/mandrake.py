"""Ours, as its users call it."""

from __future__ import annotations

from pathlib import Path

import apsw

from benchmarks.stores.store import ANSWERED, ASKED, Append, Read
from mandrake_sessions import NewTurn, SessionManager
from mandrake_sessions.database.pool import ConnectionPool
from mandrake_sessions.options import DatabaseOptions, Durability, PoolOptions


class MandrakeStore:
    """A SessionManager with the options it has by default, but for the durability.

    Attributes:
        sessions: the manager.
    """

    name = "mandrake_sessions"

    def __init__(self, folder: Path, durability: Durability) -> None:
        self.path = folder / "db.sqlite"
        self._pool = ConnectionPool(PoolOptions(linger=0))
        options = DatabaseOptions(durability=durability)
        self.sessions = SessionManager(self.path, pool=self._pool, options=options).init()

    def new_conversation(self) -> str:
        return self.sessions.create_session().id

    def appender(self, conversation: str) -> Append:
        record_round = self.sessions.record_round

        def append() -> str:
            return record_round(conversation, ASKED, [NewTurn(content=ANSWERED)]).id

        return append

    def reader(self, conversation: str) -> Read:
        render = self.sessions.render_session_history
        return lambda: len(render(conversation).rounds)

    def rest(self) -> None:
        self.sessions.handle._file.checkpoint()

    def keys(self) -> set[str]:
        return round_keys(self.path)

    def connections(self) -> list[apsw.Connection]:
        """Return the APSW connections underneath, for tracing."""
        return [lane.connection.raw for lane in self.sessions.handle._file.lanes()]

    def close(self) -> None:
        self.sessions.close()
        self._pool.close()


def round_keys(path: Path) -> set[str]:
    """Return the ids of the rounds that are whole: with their request, response and turn."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        rows = connection.execute(
            "SELECT rounds.id FROM rounds JOIN requests ON requests.round_id = rounds.id"
            " JOIN responses ON responses.round_id = rounds.id"
            " JOIN turns ON turns.response_id = responses.id"
            " WHERE requests.content = ? AND turns.content = ?",
            (ASKED, ANSWERED),
        ).fetchall()
    finally:
        connection.close()
    return {str(row[0]) for row in rows}
