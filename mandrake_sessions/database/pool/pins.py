"""Blocks during which a file stays open and is not parked.

Classes and not generators, which made a snapshot of one statement a third slower.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from mandrake_sessions.concurrency.blocks import Block
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.engine.protocols import FileParkedError

T = TypeVar("T")

Pinned = tuple[DatabaseFile, float | None]
"""A pinned file, and the seconds that are left to the call; None for its default."""


class Pin(Block[Pinned]):
    """Keeps a file open for a block.

    Args:
        pin: opens the file if necessary, and pins it.
        unpin: undoes the pin.
        timeout: of the call, in seconds.
        operation: for errors.
    """

    def __init__(
        self,
        pin: Callable[[float | None, str, object], Pinned],
        unpin: Callable[[object], None],
        timeout: float | None,
        operation: str,
    ) -> None:
        self._pin = pin
        self._unpin = unpin
        self._timeout = timeout
        self._operation = operation

    def _enter(self) -> Pinned:
        return self._pin(self._timeout, self._operation, self)

    def _end(self) -> None:
        self._unpin(self)


class PinnedScope(Block[T]):
    """A scope of a file: its lease keeps the file open; a parked file is pinned before.

    Args:
        file: the file, open or parked.
        pin: opens a parked file again.
        timeout: of the call, in seconds.
        scope: begins the scope.
    """

    holds_a_lease = True

    def __init__(
        self,
        file: DatabaseFile,
        pin: Pin,
        timeout: float | None,
        scope: Callable[[DatabaseFile, float | None], Block[T]],
    ) -> None:
        self._file = file
        self._pin = pin
        self._timeout = timeout
        self._make = scope
        self._scope: Block[T] | None = None

    def _enter(self) -> T:
        try:
            return self._begin(self._file, self._timeout)
        except FileParkedError:
            pass
        with self._pin as (file, left):
            return self._begin(file, left)

    def _begin(self, file: DatabaseFile, timeout: float | None) -> T:
        self._scope = self._make(file, timeout)
        return self._scope.__enter__()

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
