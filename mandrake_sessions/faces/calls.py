"""How each face runs a unit.

The functions in ``records`` prepare a unit of work: arguments are checked and ids made before any
lease is taken. ``make faces`` makes the methods of the faces from them. The functions and classes
here run the prepared unit: by itself, or inside an open transaction together with others.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator
from types import FunctionType
from typing import Any, Generic, Literal, TypeVar

from mandrake_sessions.database.handle import DatabaseHandle
from mandrake_sessions.database.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.errors import HandleReleasedError, NotInitializedError

T = TypeVar("T")
R = TypeVar("R", bound=ReadTransaction)

Kind = Literal["write", "fetch", "query"]
"""How a unit is run: it writes, is a short read, or is a read that may take long."""


def positional(function: Callable[..., T]) -> Callable[..., T]:
    """Return a unit's function that takes all its arguments by position, in their order.

    CPython looks for each keyword of a call among all names of the function. With the 17 of
    ``create_turn`` that takes 0.6 µs, three times as long as the call without them.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    return FunctionType(
        code.replace(co_argcount=count, co_kwonlyargcount=0),
        function.__globals__,
        function.__name__,
    )


@contextlib.contextmanager
def not_initialized_once_released() -> Generator[None]:
    """Raise NotInitializedError for a handle that another thread has released by closing."""
    try:
        yield
    except HandleReleasedError:
        raise NotInitializedError from None


# -- units of their own -------------------------------------------------------------------------


class ManagerCalls:
    """A manager as its methods see it: a database that is open, or not."""

    _handle: DatabaseHandle | None = None

    @property
    def handle(self) -> DatabaseHandle:
        """The claim on the database, for statements of one's own.

        Raises:
            NotInitializedError: before ``init()`` and after ``close()``.
        """
        handle = self._handle
        if handle is None:
            raise NotInitializedError
        return handle


class ManagerFacet:
    """A group of a manager's methods.

    Args:
        face: the manager.
    """

    __slots__ = ("_face",)

    def __init__(self, face: ManagerCalls) -> None:
        self._face = face


def write(handle: DatabaseHandle, unit: WriteUnit[T], operation: str, *, claims: bool = False) -> T:
    """Run a writing unit; it may share its COMMIT with units of other threads.

    Args:
        handle: on the database.
        unit: the work.
        operation: names it in errors.
        claims: whether the process must first claim the file as the owner of turns that stream.
    """
    try:
        return handle.transact_for_others(unit, operation, delegable=True, claims=claims)
    except HandleReleasedError:
        raise NotInitializedError from None


def fetch(handle: DatabaseHandle, unit: ReadUnit[T], operation: str) -> T:
    """Run a short reading unit."""
    try:
        return handle.fetch(unit, operation)
    except HandleReleasedError:
        raise NotInitializedError from None


def query(handle: DatabaseHandle, unit: ReadUnit[T], operation: str) -> T:
    """Run a reading unit that may take long, in one snapshot that no writer waits for."""
    try:
        return handle.query(unit, operation)
    except HandleReleasedError:
        raise NotInitializedError from None


class AwaitedCalls(ABC):
    """A manager for coroutines as its methods see it."""

    @abstractmethod
    def open_handle(self) -> DatabaseHandle:
        """Return the claim on the database; raises NotInitializedError where there is none."""

    @abstractmethod
    def run_unit(
        self,
        handle: DatabaseHandle,
        unit: Callable[[Any], T],
        operation: str,
        kind: Kind,
        *,
        claims: bool = False,
    ) -> Coroutine[Any, Any, T]:
        """Return a coroutine that has a unit run in a thread and returns its result.

        Args:
            handle: on the database.
            unit: the work, called with an open transaction.
            operation: names it in errors.
            kind: how the unit is run.
            claims: whether the process must first claim the file as the owner of turns that stream.
        """


class AwaitedFacet:
    """A group of the methods of a manager for coroutines.

    Args:
        face: the manager.
    """

    __slots__ = ("_face",)

    def __init__(self, face: AwaitedCalls) -> None:
        self._face = face


# -- inside an open transaction -----------------------------------------------------------------


class ReaderCalls(Generic[R]):
    """The reading methods of a transaction, or a group of them.

    Args:
        database: the transaction of the layer below.
    """

    def __init__(self, database: R) -> None:
        self.database = database


class TransactionCalls(ReaderCalls[WriteTransaction]):
    """The methods of a transaction, or a group of them.

    Args:
        database: the transaction of the layer below.
        claim: makes this process the owner of the turns that it streams into the file.
    """

    def __init__(self, database: WriteTransaction, claim: Callable[[], object]) -> None:
        super().__init__(database)
        self.claim = claim


def write_within(face: TransactionCalls, unit: WriteUnit[T], *, claims: bool = False) -> T:
    """Run a writing unit behind a savepoint: one that raises leaves nothing if the block goes on.

    Args:
        face: the open transaction.
        unit: the work.
        claims: whether the process must first claim the file as the owner of turns that stream.
    """
    database = face.database
    if claims:
        # Inside a transaction, but once in the life of an open file.
        face.claim()
    with database.savepoint():
        return unit(database)
