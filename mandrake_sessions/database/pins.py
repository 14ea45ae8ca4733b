"""Blocks during which a file stays open, however many others want its place.

Classes and not generators: a snapshot of one statement became a third dearer by those.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar

from mandrake_sessions.database.file import DatabaseFile
from mandrake_sessions.database.parking import FileParkedError

T = TypeVar("T")

Pinned = tuple[DatabaseFile, float | None]
"""A file that stays open, and the seconds that are left to the call; None for its default."""


class Pin:
    """Keeps a file open for a block.

    Args:
        pin: opens the file if need be, and pins it.
        timeout: of the call, in seconds.
        operation: for errors.
    """

    __slots__ = ("_file", "_operation", "_pin", "_timeout")

    def __init__(
        self, pin: Callable[[float | None, str], Pinned], timeout: float | None, operation: str
    ) -> None:
        self._pin = pin
        self._timeout = timeout
        self._operation = operation

    def __enter__(self) -> Pinned:
        pinned = self._pin(self._timeout, self._operation)
        self._file = pinned[0]
        return pinned

    def __exit__(self, *_: object) -> None:
        self._file.unpin()


class PinnedScope(AbstractContextManager[T]):
    """A scope of a file: its lease keeps that open; one that is parked is pinned before.

    Args:
        file: the file as it is.
        pin: opens it again.
        timeout: of the call, in seconds.
        scope: begins the scope.
    """

    __slots__ = ("_begin", "_file", "_pin", "_scope", "_timeout")

    def __init__(
        self,
        file: DatabaseFile,
        pin: Pin,
        timeout: float | None,
        scope: Callable[[DatabaseFile, float | None], AbstractContextManager[T]],
    ) -> None:
        self._file = file
        self._pin = pin
        self._timeout = timeout
        self._begin = scope

    def __enter__(self) -> T:
        try:
            self._scope = self._begin(self._file, self._timeout)
            return self._scope.__enter__()
        except FileParkedError:
            pass
        with self._pin as (file, left):
            self._scope = self._begin(file, left)
            return self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._scope.__exit__(kind, error, traceback)
