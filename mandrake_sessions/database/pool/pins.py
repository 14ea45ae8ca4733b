"""Blocks during which a file stays open and is not parked.

Classes and not generators, which made a snapshot of one statement a third slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mandrake_sessions.concurrency.blocks import Block, EnclosingBlock
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


class PinnedScope(EnclosingBlock[T]):
    """A scope of a file: its lease keeps the file open; a parked file is pinned before.

    Args:
        file: the file, open or parked.
        pin: opens a parked file again.
        timeout: of the call, in seconds.
        scope: begins the scope.
    """

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

    def _enter(self) -> T:
        try:
            return self._begin_enclosed(self._make(self._file, self._timeout))
        except FileParkedError:
            pass
        with self._pin as (file, left):
            return self._begin_enclosed(self._make(file, left))
