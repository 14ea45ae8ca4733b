"""Imports a database of the origin, Mandrake's SessionManager in TypeScript.

The source is copied and read from the copy (``source``). Its rows become records of this library
(``origin``, which makes and counts the needed repairs), and the missing ones are stored
(``placement``). Times are read as UTC text, seconds, milliseconds or microseconds, in any mixture.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mandrake_sessions import arguments
from mandrake_sessions.database.connection.foreign import open_foreign
from mandrake_sessions.database.files.paths import identify, real_path
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.errors import ImportSourceError, InvalidArgumentError
from mandrake_sessions.ids import now
from mandrake_sessions.importers.origin import Draft, Origin
from mandrake_sessions.importers.placement import place_rounds
from mandrake_sessions.importers.report import ImportProgress, ImportReport
from mandrake_sessions.importers.source import private_copy
from mandrake_sessions.manager import SessionManager
from mandrake_sessions.models import Session
from mandrake_sessions.records.sessions import find_session

_OPERATION = "import_mandrake"

CHUNK_ROUNDS = 200
"""Rounds stored in one transaction, so that no other caller waits long for one."""

CHUNK_CHARACTERS = 8 * 1024 * 1024
"""Characters of text after which a transaction ends earlier."""


def import_mandrake(
    source: str | os.PathLike[str],
    sessions: SessionManager,
    *,
    recover_orphans: bool = False,
    progress: Callable[[ImportProgress], None] | None = None,
) -> ImportReport:
    """Import the sessions of an origin's database, with their ids, contents and times.

    The source and its folder do not change. Rows that the target has already are skipped and never
    changed, so another run completes one that was interrupted, and a run after that adds nothing.
    A session is stored with its rounds in one transaction, a long one in several, each of them with
    whole rounds.

    The rows that deleted sessions have left are counted in the report. With ``recover_orphans``
    they are also stored in one session, "Recovered from" and the file's name, with one round for
    each request and its response. If their relation is unknown, requests and responses come in
    separate rounds.

    Args:
        source: the origin's database file, which no program uses.
        sessions: the target, open.
        recover_orphans: whether orphans are stored, too.
        progress: called after each session; an exception from it stops the import.

    Returns:
        What was found, stored and repaired.

    Raises:
        InvalidArgumentError: an argument has the wrong type, or a text of the source is longer
            than ``json_writer.MAX_TEXT_BYTES``.
        NotInitializedError: the target is not open.
        ImportSourceError: the source is in use, is not a database of the origin, or cannot be
            read; nothing was stored, as with the next four errors.
        DatabaseMissingError: there is no such file.
        DatabasePathError: the path does not name a file.
        NotADatabaseError: it is not a SQLite database.
        CorruptDatabaseError: it is damaged.
        StorageFullError: there is no room for the copy of the source, or for its rows.
        DatabaseError: the target failed; the rows stored before stay.
    """
    source = arguments.path("source", source)
    if not arguments.is_one(sessions, SessionManager):
        raise InvalidArgumentError("sessions must be a SessionManager.")
    arguments.flag("recover_orphans", recover_orphans)
    if progress is not None:
        arguments.function("progress", progress)
    handle = file_handle(sessions.handle)
    path = real_path(source)
    if identify(path) == identify(sessions.path) is not None:
        raise ImportSourceError(f"{path} is the database to import into.")
    with private_copy(path) as copy, open_foreign(copy, path) as database:
        # The time for rows that have no usable one, nor belong to a row that has.
        origin = Origin(database, str(path), _changed_us(path))
        orphans = origin.count_orphans()
        is_recovering = recover_orphans and orphans.total() > 0
        run = _Run(handle, progress, origin.count_sessions() + is_recovering)
        for rowid, session, repairs in origin.sessions():
            run.store(session, repairs, origin.rounds(rowid, session))
        recovery_id = None
        if is_recovering:
            # The name of a file need not be UTF-8 either.
            name = os.fsencode(path.name).decode(errors="replace")
            recovery = _recovery_session(origin.recovery_session_id(), name)
            run.recover(recovery, origin.orphans(recovery))
            if handle.fetch(find_session(recovery.id), _OPERATION) is not None:
                recovery_id = recovery.id
    return ImportReport(source=str(path), recovery_session_id=recovery_id, **orphans, **run.counts)


def _changed_us(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns // 1000
    except OSError:  # moved away since the copy
        return now()


def _recovery_session(id: str, name: str) -> Session:
    moment = now()
    return Session(
        id=id,
        title=f"Recovered from {name}",
        description="Requests, responses and turns that deleted sessions left behind.",
        metadata={"recovered_orphans": True, "source": name},
        next_round_index=0,
        revision=0,
        created_us=moment,
        updated_us=moment,
    )


class _Run:
    """One import under way.

    Attributes:
        counts: the counts so far, by the names of ``ImportReport``.
    """

    def __init__(
        self,
        handle: Handle,
        progress: Callable[[ImportProgress], None] | None,
        total: int,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._handle = handle
        self._progress = progress
        self._total = total
        self._done = 0

    def store(self, session: Session, repairs: Counter[str], drafts: Iterable[Draft]) -> None:
        """Store a session with its rounds."""
        is_new, rounds = self._place(session, drafts, by_parts=False)
        rounds["rounds"] = rounds.pop("stored")
        self.counts.update(rounds)
        if is_new:
            self.counts.update(repairs)
        self.counts["sessions" if is_new else "sessions_already_there"] += 1

    def recover(self, session: Session, drafts: Iterable[Draft]) -> None:
        """Store orphans in a session made for them, and count them separately."""
        # An orphan whose session was imported before its deletion is in the target already.
        _, found = self._place(session, drafts, by_parts=True)
        self.counts["rounds_recovered"] += found.pop("stored", 0)
        for already_counted in ("rounds_already_there", "rounds_appended"):
            found.pop(already_counted, None)
        for part in ("rounds", "requests", "responses", "turns"):
            self.counts["orphans_recovered"] += found.pop(part, 0)
        self.counts.update(found)

    def _place(
        self, session: Session, drafts: Iterable[Draft], *, by_parts: bool
    ) -> tuple[bool, Counter[str]]:
        """Store missing rounds; return whether the session was missing, and the counts."""
        counts: Counter[str] = Counter()
        is_new = is_displaced = False
        for chunk in _chunks(drafts):
            unit = place_rounds(
                session,
                [draft.exchange for draft in chunk],
                is_displaced=is_displaced,
                by_parts=by_parts,
            )
            placed = self._handle.transact(unit, _OPERATION)
            is_new = is_new or placed.is_new_session
            is_displaced = placed.is_displaced
            for position in placed.stored:
                counts.update(chunk[position].counts)
            counts["stored"] += len(placed.stored)
            counts["rounds_already_there"] += len(chunk) - len(placed.stored)
            counts["rounds_appended"] += placed.appended
            counts["ids_replaced"] += placed.ids_replaced
        self._done += 1
        if self._progress is not None:
            self._progress(ImportProgress(self._done, self._total, session.id))
        return is_new, counts


def _chunks(drafts: Iterable[Draft]) -> Iterator[list[Draft]]:
    """Yield the rounds in groups for one transaction each; an empty one if there are none."""
    chunk: list[Draft] = []
    size = 0
    is_first = True
    for draft in drafts:
        chunk.append(draft)
        size += draft.size
        if len(chunk) == CHUNK_ROUNDS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size, is_first = [], 0, False
    if chunk or is_first:
        yield chunk
