"""SessionTransaction: the record methods inside one open transaction."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from mandrake_sessions.concurrency.blocks import Block
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.engine.transaction import WriteTransaction
from mandrake_sessions.faces.calls import not_initialized_once_released
from mandrake_sessions.faces.transaction import TransactionFace


class SessionTransaction(TransactionFace):
    """Several calls in one transaction: all of them are stored, or none."""

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo the calls of the block if it raises, and only those."""
        return self._database.savepoint()


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
