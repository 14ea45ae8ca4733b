"""SessionTransaction: the record methods inside one open transaction."""

from __future__ import annotations

from contextlib import AbstractContextManager

from mandrake_sessions.concurrency.blocks import EnclosingBlock
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.faces.calls import not_initialized_once_released
from mandrake_sessions.faces.transaction import TransactionFace


class SessionTransaction(TransactionFace):
    """Several calls in one transaction: all of them are stored, or none."""

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo the calls of the block if it raises, and only those."""
        return self._database.savepoint()


class TransactionBlock(EnclosingBlock[SessionTransaction]):
    """A ``transaction()`` block.

    Args:
        handle: on the database.
        timeout: seconds for the queue, BEGIN and the block; None for the ``busy_timeout``.
    """

    def __init__(self, handle: Handle, timeout: float | None) -> None:
        self._handle = handle
        self._timeout = timeout

    def _enter(self) -> SessionTransaction:
        with not_initialized_once_released():
            database = self._begin_enclosed(self._handle.write(self._timeout))
        return SessionTransaction(database, self._handle.claim)
