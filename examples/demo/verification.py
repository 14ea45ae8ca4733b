"""Compares the databases of a demo with its log, in another process than the agents'.

Every acknowledged row must be there, as acknowledged or in a later state; refused rows must not;
indexes must have no gaps, and no row may be there twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import msgspec

from examples.demo.ledger import Entry, digest_of, read_ledger
from mandrake_sessions import (
    ConnectionPool,
    Exchange,
    HealthStatus,
    MandrakeSessionsError,
    PoolOptions,
    Session,
    SessionManager,
    Turn,
    diagnose,
)

_PAGE = 500
_TOLD_PROBLEMS = 20


class DatabaseFindings(msgspec.Struct, kw_only=True):
    """The findings in one database.

    Attributes:
        unacknowledged: rows, and states of turns, that are there without a line in the log: their
            call had not returned, or its line was not on disk yet.
        integrity: ``ok``, or the findings of a full check of the file.
    """

    name: str
    path: str
    sessions: int = 0
    rounds: int = 0
    turns: int = 0
    acknowledged: int = 0
    found: int = 0
    unacknowledged: int = 0
    integrity: str = "not checked"


class Verification(msgspec.Struct, kw_only=True):
    """The result of comparing databases and log.

    Attributes:
        acknowledged: lines of calls that returned.
        found: those of them that the databases confirm.
        refused: lines of refused calls.
        refused_but_stored: those of them that were stored all the same.
        problems: the first problems, in words.
        problem_count: how many there are.
    """

    directory: str
    acknowledged: int = 0
    found: int = 0
    refused: int = 0
    refused_but_stored: int = 0
    databases: list[DatabaseFindings] = []
    problems: list[str] = []
    problem_count: int = 0
    seconds: float = 0.0

    @property
    def is_ok(self) -> bool:
        """Whether the databases keep the promises."""
        return self.found == self.acknowledged and self.problem_count == 0


def verify(directory: Path) -> Verification:
    """Compare the databases of a demo with its log.

    Raises:
        DemoError: there is no log.
    """
    began = monotonic()
    header, entries = read_ledger(directory)
    result = Verification(
        directory=str(directory),
        refused=sum(entry.refused for entry in entries),
        acknowledged=sum(not entry.refused for entry in entries),
    )
    checks = []
    for name, place in header.databases.items():
        check = _Check(name, directory / place, result)
        mine = [entry for entry in entries if entry.database == name]
        try:
            check.run(mine)
        except MandrakeSessionsError as error:
            check.complain(f"{type(error).__name__}: {error}")
        checks.append(check)
    result.databases = [check.findings for check in checks]
    result.found = sum(each.found for each in result.databases)
    result.seconds = monotonic() - began
    return result


class _Check:
    """The comparison for one database."""

    def __init__(self, name: str, path: Path, result: Verification) -> None:
        self.findings = DatabaseFindings(name=name, path=str(path))
        self._path = path
        self._result = result
        self._sessions: dict[str, Session] = {}
        self._rounds: dict[str, Exchange] = {}
        self._turns: dict[str, Turn] = {}
        self._contents: dict[str, bytes] = {}

    def complain(self, problem: str) -> None:
        """Note a problem."""
        self._result.problem_count += 1
        if len(self._result.problems) < _TOLD_PROBLEMS:
            self._result.problems.append(f"{self.findings.name}: {problem}")

    def run(self, entries: list[Entry]) -> None:
        """Read the database from its files, and check it for every line of the log."""
        self.findings.acknowledged = sum(not entry.refused for entry in entries)
        pool = ConnectionPool(PoolOptions(linger=0.0))
        with pool, SessionManager(self._path, pool=pool, create=False) as sessions:
            for session in _all_sessions(sessions):
                self._read_session(session, sessions)
        # No process has the file open now, so it can be checked in its place.
        checks = diagnose(self._path, full=True).checks
        complaints = [
            f"{it.name}: {it.detail}" for it in checks if it.status is HealthStatus.FAILED
        ]
        self.findings.integrity = "; ".join(complaints) or "ok"
        for complaint in complaints:
            self.complain(f"integrity: {complaint}")
        self.findings.sessions = len(self._sessions)
        self.findings.rounds = len(self._rounds)
        self.findings.turns = len(self._turns)
        self._look_for(entries)

    # -- what is there ----------------------------------------------------------------------

    def _read_session(self, session: Session, sessions: SessionManager) -> None:
        self._sessions[session.id] = session
        exchanges = list(sessions.iter_session_history(session.id, page_size=_PAGE))
        self._require_contiguous(
            f"rounds of session {session.id}", [exchange.index for exchange in exchanges]
        )
        if session.next_round_index != len(exchanges):
            self.complain(
                f"session {session.id} has counted {session.next_round_index} rounds "
                f"and has {len(exchanges)}"
            )
        questions: set[str] = set()
        for exchange in exchanges:
            if exchange.id in self._rounds or exchange.request.content in questions:
                self.complain(f"round {exchange.id} is there twice")
            questions.add(exchange.request.content)
            self._rounds[exchange.id] = exchange
            self._contents[exchange.id] = exchange.request.content.encode()
            self._require_contiguous(
                f"turns of round {exchange.id}", [turn.index for turn in exchange.turns]
            )
            for turn in exchange.turns:
                if turn.id in self._turns:
                    self.complain(f"turn {turn.id} is there twice")
                self._turns[turn.id] = turn
                self._contents[turn.id] = turn.content.encode()

    def _require_contiguous(self, what: str, indexes: list[int]) -> None:
        if indexes != list(range(len(indexes))):
            self.complain(f"the indexes of the {what} have gaps or repeat")

    # -- what must be there -----------------------------------------------------------------

    def _look_for(self, entries: list[Entry]) -> None:
        newest: dict[str, int] = {}
        for entry in entries:
            if entry.refused:
                self._look_for_refused(entry)
                continue
            newest[entry.id] = max(entry.revision, newest.get(entry.id, 0))
            missing = self._what_is_missing(entry)
            if missing is None:
                self.findings.found += 1
            else:
                self.complain(f"{entry.call} {entry.kind} {entry.id}: {missing}")
        there = [*self._sessions, *self._rounds, *self._turns]
        self.findings.unacknowledged = sum(id not in newest for id in there) + sum(
            turn.revision - newest[turn.id] for turn in self._turns.values() if turn.id in newest
        )

    def _look_for_refused(self, entry: Entry) -> None:
        turn = self._turns.get(entry.id)
        # A stream that was refused ends all the same, as interrupted, with what it had written.
        if entry.id in self._rounds or (turn is not None and entry.status in ("", turn.status)):
            self._result.refused_but_stored += 1
            self.complain(f"{entry.call} {entry.kind} {entry.id}: refused, and stored all the same")

    def _what_is_missing(self, entry: Entry) -> str | None:
        """Return how the database differs from an acknowledgement, or None."""
        if entry.kind == "session":
            return None if entry.id in self._sessions else "is not there"
        exchange, turn = self._rounds.get(entry.id), self._turns.get(entry.id)
        if entry.kind == "round" and exchange is not None:
            place, wrong = (exchange.session_id, exchange.index), None
        elif entry.kind == "turn" and turn is not None:
            place, wrong = (turn.response_id, turn.index), _turn_difference(turn, entry)
        else:
            return "is not there"
        if place != (entry.parent, entry.index):
            return "is at another place"
        # Text only grows: a later state begins with the acknowledged text.
        content = self._contents[entry.id]
        if len(content) < entry.size or digest_of(content[: entry.size]) != entry.digest:
            return "has another content"
        return wrong


def _turn_difference(turn: Turn, entry: Entry) -> str | None:
    if turn.revision < entry.revision:
        return f"is at revision {turn.revision}, acknowledged was {entry.revision}"
    if turn.revision > entry.revision:
        return None
    stored = (turn.status.value, turn.output_tokens, len(turn.content.encode()))
    if stored != (entry.status, entry.output_tokens, entry.size):
        return "has the acknowledged revision and other fields"
    return None


def _all_sessions(sessions: SessionManager) -> Iterator[Session]:
    after: Session | None = None
    while page := sessions.list_sessions(limit=_PAGE, after=after):
        yield from page
        after = page[-1]
