"""SessionTransaction: the record methods inside one open transaction."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from mandrake_sessions.concurrency.blocks import Block
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.engine.transaction import WriteTransaction
from mandrake_sessions.methods import (
    not_initialized_once_released,
    reads_within,
    writes_within,
)
from mandrake_sessions.records import (
    history,
    requests,
    rounds,
    sessions,
    turn_updates,
    turns,
    usage,
)


class SessionTransaction:
    """Several calls in one transaction: all of them are stored, or none.

    Attributes:
        database: the transaction of the layer below, for statements of one's own.
        claim: makes this process the owner of what it streams into the file.
    """

    def __init__(self, database: WriteTransaction, claim: Callable[[], object]) -> None:
        self.database = database
        self.claim = claim

    create_session = writes_within(sessions.create_session)
    get_session = reads_within(sessions.get_session)
    find_session = reads_within(sessions.find_session)
    list_sessions = reads_within(sessions.list_sessions)
    count_sessions = reads_within(sessions.count_sessions)
    update_session = writes_within(sessions.update_session)
    delete_session = writes_within(sessions.delete_session)

    create_round = writes_within(rounds.create_round)
    record_round = writes_within(rounds.record_round)
    get_round = reads_within(rounds.get_round)
    get_round_by_response = reads_within(rounds.get_round_by_response)
    get_current_round = reads_within(rounds.get_current_round)
    list_rounds = reads_within(rounds.list_rounds)
    delete_round = writes_within(rounds.delete_round)

    get_request = reads_within(requests.get_request)
    update_request = writes_within(requests.update_request)
    get_response = reads_within(requests.get_response)

    create_turn = writes_within(turns.create_turn, claims=True)
    get_turn = reads_within(turns.get_turn)
    get_latest_turn = reads_within(turns.get_latest_turn)
    list_turns = reads_within(turns.list_turns)
    update_turn = writes_within(turn_updates.update_turn)
    delete_turn = writes_within(turns.delete_turn)
    get_streaming_status = reads_within(turns.get_streaming_status)

    render_session_history = reads_within(history.render_session_history)
    get_session_usage = reads_within(usage.get_session_usage)

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo what the block did if it raises, and only that."""
        return self.database.savepoint()


class TransactionBlock(Block[SessionTransaction]):
    """A ``transaction()`` block.

    Args:
        handle: on the database.
        timeout: seconds for the queue, BEGIN and the block; None for the ``busy_timeout``.
    """

    holds_a_lease = True

    def __init__(self, handle: Handle, timeout: float | None) -> None:
        self._handle = handle
        self._timeout = timeout
        self._scope: Block[WriteTransaction] | None = None

    def _enter(self) -> SessionTransaction:
        with not_initialized_once_released():
            self._scope = self._handle.write(self._timeout)
            database = self._scope.__enter__()
        return SessionTransaction(database, self._handle.claim)

    def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._scope is not None
        try:
            return self._scope._leave(kind, error, traceback)
        finally:
            if not self._scope.is_entered:
                self._note_ended()

    def _end(self) -> None:
        if self._scope is not None:
            self._scope._end()
