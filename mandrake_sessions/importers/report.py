"""The report of an import: its progress, and its result."""

from __future__ import annotations

import msgspec


class ImportProgress(msgspec.Struct, frozen=True):
    """The progress of an import, after each session.

    Attributes:
        done: sessions that are done.
        total: sessions of the source, and the one for recovered orphans.
        session_id: the last session that was done.
    """

    done: int
    total: int
    session_id: str


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an import: what it found, stored and repaired.

    All but the ``orphaned_…`` counts are about rows that this run stored: a run that finds all of
    them in the target reports no repairs.

    Attributes:
        source: the path of the source.
        sessions: sessions stored.
        rounds: rounds stored, with their ``requests``, ``responses`` and ``turns``.
        requests: requests stored.
        responses: responses stored.
        turns: turns stored.
        sessions_already_there: sessions whose id was in the target; their fields did not change.
        rounds_already_there: rounds whose id was in the target; they did not change at all.
        rounds_appended: rounds that came after the session's last one, because a round that is not
            from the source had their index.
        orphaned_rounds: rounds in the source whose session is gone.
        orphaned_requests: requests in the source that belong to no session.
        orphaned_responses: responses in the source that belong to no session.
        orphaned_turns: turns in the source that belong to no session.
        orphans_recovered: rows of the four kinds that were stored in the recovery session. They
            are not in the counts above.
        rounds_recovered: the rounds that they form there.
        recovery_session_id: the session for the orphans, also of an earlier run; None without
            recovery or without orphans.
        turns_interrupted: turns left streaming, now interrupted, with an end.
        turns_renumbered: turns that got another index, because two of their response had the same
            one or one was unusable.
        times_converted: times that were UTC text, seconds or milliseconds.
        times_repaired: times that could not be read, lay outside the years 2000 to 2099, or
            contradicted another (changed before made, ended before begun); they took the time of
            the row they belong to.
        texts_repaired: texts that were not valid Unicode, or blobs, or numbers.
        numbers_repaired: token counts and costs of a wrong type or below 0.
        json_kept_raw: metadata and tool calls that are not the expected JSON, kept as text.
        statuses_replaced: turns with a status that the origin does not know, now ``error``.
        ids_replaced: ids that were unusable or taken, and were made anew from the old ones.
        parts_missing: requests and responses that a round names and the source does not have;
            the round got an empty one.
    """

    source: str
    sessions: int = 0
    rounds: int = 0
    requests: int = 0
    responses: int = 0
    turns: int = 0
    sessions_already_there: int = 0
    rounds_already_there: int = 0
    rounds_appended: int = 0
    orphaned_rounds: int = 0
    orphaned_requests: int = 0
    orphaned_responses: int = 0
    orphaned_turns: int = 0
    orphans_recovered: int = 0
    rounds_recovered: int = 0
    recovery_session_id: str | None = None
    turns_interrupted: int = 0
    turns_renumbered: int = 0
    times_converted: int = 0
    times_repaired: int = 0
    texts_repaired: int = 0
    numbers_repaired: int = 0
    json_kept_raw: int = 0
    statuses_replaced: int = 0
    ids_replaced: int = 0
    parts_missing: int = 0

    @property
    def orphans_found(self) -> int:
        """Rows of the source that belong to no session."""
        return (
            self.orphaned_rounds
            + self.orphaned_requests
            + self.orphaned_responses
            + self.orphaned_turns
        )
