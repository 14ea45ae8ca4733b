"""How each face runs a unit.

The functions in ``records`` prepare a unit of work: they check arguments and make ids before any
lease is taken. ``make faces`` makes the methods of the faces from them. The functions and classes
here run the prepared unit: by itself, or inside an open transaction together with others.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator
from types import FunctionType
from typing import Any, Generic, Literal, TypeVar

from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.engine.transaction import (
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

    CPython compares each keyword of a call with the names of the function. With the 17 keywords of
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
    """Raise NotInitializedError if another thread has released the handle by closing."""
    try:
        yield
    except HandleReleasedError:
        raise NotInitializedError from None


# -- one unit for each call ---------------------------------------------------------------------


class ManagerCalls(ABC):
    """A manager as its methods use it: a database that is open, or not."""

    @property
    @abstractmethod
    def _opened(self) -> Handle:
        """The handle on the open database.

        Raises:
            NotInitializedError: before ``init()`` and after ``close()``.
        """


class ManagerFacet:
    """A group of a manager's methods.

    Args:
        face: the manager.
    """

    __slots__ = ("_face",)

    def __init__(self, face: ManagerCalls) -> None:
        self._face = face

    @property
    def _opened(self) -> Handle:
        return self._face._opened  # pyright: ignore[reportPrivateUsage]


def write(handle: Handle, unit: WriteUnit[T], operation: str, *, claims: bool = False) -> T:
    """Run a writing unit; it may share its COMMIT with units of other threads.

    Args:
        handle: on the database.
        unit: the work.
        operation: names it in errors.
        claims: whether the process must first claim the file as the owner of streaming turns.
    """
    try:
        return handle.transact(unit, operation, delegable=True, claims=claims)
    except HandleReleasedError:
        raise NotInitializedError from None


def fetch(handle: Handle, unit: ReadUnit[T], operation: str) -> T:
    """Run a short reading unit."""
    try:
        return handle.fetch(unit, operation)
    except HandleReleasedError:
        raise NotInitializedError from None


def query(handle: Handle, unit: ReadUnit[T], operation: str) -> T:
    """Run a reading unit that may take long, in one snapshot; no writing thread waits for it."""
    try:
        return handle.query(unit, operation)
    except HandleReleasedError:
        raise NotInitializedError from None


class AwaitedCalls(ABC):
    """A manager for coroutines as its methods use it."""

    @abstractmethod
    def _open_handle(self) -> Handle:
        """Return the handle on the database; raises NotInitializedError if there is none."""

    @abstractmethod
    def _run_unit(
        self,
        handle: Handle,
        unit: Callable[[Any], T],
        operation: str,
        kind: Kind,
        *,
        claims: bool = False,
    ) -> Coroutine[Any, Any, T]:
        """Return a coroutine that runs a unit in a thread and returns its result.

        Args:
            handle: on the database.
            unit: the work, called with an open transaction.
            operation: names it in errors.
            kind: how the unit is run.
            claims: whether the process must first claim the file as the owner of streaming turns.
        """


class AwaitedFacet:
    """A group of the methods of a manager for coroutines.

    Args:
        face: the manager.
    """

    __slots__ = ("_face",)

    def __init__(self, face: AwaitedCalls) -> None:
        self._face = face

    def _open_handle(self) -> Handle:
        return self._face._open_handle()  # pyright: ignore[reportPrivateUsage]

    def _run_unit(
        self,
        handle: Handle,
        unit: Callable[[Any], T],
        operation: str,
        kind: Kind,
        *,
        claims: bool = False,
    ) -> Coroutine[Any, Any, T]:
        run = self._face._run_unit  # pyright: ignore[reportPrivateUsage]
        return run(handle, unit, operation, kind, claims=claims)


# -- inside an open transaction -----------------------------------------------------------------


class ReaderCalls(Generic[R]):
    """The reading methods of a transaction, or a group of them.

    Args:
        database: the transaction of the layer below.
    """

    def __init__(self, database: R) -> None:
        self._database = database


class TransactionCalls(ReaderCalls[WriteTransaction]):
    """The methods of a transaction, or a group of them.

    Args:
        database: the transaction of the layer below.
        claim: makes this process the owner of the turns that it streams into the file.
    """

    def __init__(self, database: WriteTransaction, claim: Callable[[], object]) -> None:
        super().__init__(database)
        self._claim = claim


def write_within(face: TransactionCalls, unit: WriteUnit[T], *, claims: bool = False) -> T:
    """Run a writing unit behind a savepoint: if it raises and the block goes on, it stores nothing.

    Args:
        face: the open transaction.
        unit: the work.
        claims: whether the process must first claim the file as the owner of streaming turns.
    """
    database = face._database  # pyright: ignore[reportPrivateUsage]
    if claims:
        # Inside a transaction, but only once in the life of an open file.
        face._claim()  # pyright: ignore[reportPrivateUsage]
    with database.savepoint():
        return unit(database)
