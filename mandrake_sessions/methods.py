"""How a prepared unit becomes a method: of a manager, or of an open transaction.

The functions in ``records`` prepare a unit of work: arguments are checked and ids made before any
lease is taken. What stands here is how such a unit is run: by a manager, each as a unit of its own,
or inside a transaction, together with others. So a method has one signature and one docstring,
whoever offers it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Concatenate, Final, Literal, ParamSpec, Protocol, TypeVar

from mandrake_sessions.database.handle import DatabaseHandle
from mandrake_sessions.database.transaction import ReadUnit, WriteTransaction, WriteUnit
from mandrake_sessions.errors import HandleReleasedError, NotInitializedError

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])

Kind = Literal["write", "fetch", "query"]
"""How a unit is run: it writes, is a short read, or may be a long one."""

RECIPE: Final = "__unit__"
"""The attribute of a manager's method that tells other faces what it is made of."""


class Recipe:
    """What a manager's method is made of.

    Attributes:
        prepare: checks the arguments and returns the unit.
        kind: how the unit is run.
        claims: whether it needs this process's claim on the file, for turns that stream.
    """

    __slots__ = ("claims", "kind", "prepare")

    def __init__(self, prepare: Callable[..., Any], kind: Kind, *, claims: bool = False) -> None:
        self.prepare = prepare
        self.kind = kind
        self.claims = claims


class Opened(Protocol):
    """What has a database open: a manager."""

    @property
    def handle(self) -> DatabaseHandle:
        """The claim on the database."""


class Within(Protocol):
    """What works inside an open transaction."""

    @property
    def database(self) -> WriteTransaction:
        """The transaction of the layer below."""

    @property
    def claim(self) -> Callable[[], object]:
        """Makes this process's claim on the file."""


def with_signature(method: M, prepare: Callable[..., object]) -> M:
    """Have a method tell its own signature, and not that of the function that prepares its work."""
    told = inspect.signature(prepare)
    # "WriteUnit[Session]" is what the function returns, "Session" the method.
    returns = str(told.return_annotation).partition("[")[2].removesuffix("]")
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = told.replace(  # type: ignore[attr-defined]
        parameters=[myself, *told.parameters.values()], return_annotation=returns
    )
    method.__annotations__ = {**method.__annotations__, "return": returns}
    return method


@contextlib.contextmanager
def not_initialized_once_released() -> Iterator[None]:
    """Tell of a handle that was released what its manager tells: another thread has closed it."""
    try:
        yield
    except HandleReleasedError:
        raise NotInitializedError from None


def _finished(method: M, prepare: Callable[..., object], kind: Kind, *, claims: bool = False) -> M:
    setattr(method, RECIPE, Recipe(prepare, kind, claims=claims))
    return with_signature(method, prepare)


def writes(
    prepare: Callable[P, WriteUnit[T]], *, claims: bool = False
) -> Callable[Concatenate[Opened, P], T]:
    """Offer a writing unit as a method: it may share its COMMIT with other threads' units.

    Args:
        prepare: returns the unit.
        claims: whether it needs this process's claim on the file.
    """

    @wraps(prepare)
    def method(self: Opened, /, *args: P.args, **kwargs: P.kwargs) -> T:
        handle = self.handle
        unit = prepare(*args, **kwargs)
        try:
            return handle.transact_for_others(unit, prepare.__name__, delegable=True, claims=claims)
        except HandleReleasedError:
            raise NotInitializedError from None

    return _finished(method, prepare, "write", claims=claims)


def fetches(prepare: Callable[P, ReadUnit[T]]) -> Callable[Concatenate[Opened, P], T]:
    """Offer a short reading unit as a method."""

    @wraps(prepare)
    def method(self: Opened, /, *args: P.args, **kwargs: P.kwargs) -> T:
        handle = self.handle
        unit = prepare(*args, **kwargs)
        try:
            return handle.fetch(unit, prepare.__name__)
        except HandleReleasedError:
            raise NotInitializedError from None

    return _finished(method, prepare, "fetch")


def queries(prepare: Callable[P, ReadUnit[T]]) -> Callable[Concatenate[Opened, P], T]:
    """Offer a reading unit that may be long as a method: one snapshot, no writer waits for it."""

    @wraps(prepare)
    def method(self: Opened, /, *args: P.args, **kwargs: P.kwargs) -> T:
        handle = self.handle
        unit = prepare(*args, **kwargs)
        try:
            return handle.query(unit, prepare.__name__)
        except HandleReleasedError:
            raise NotInitializedError from None

    return _finished(method, prepare, "query")


def writes_within(
    prepare: Callable[P, WriteUnit[T]], *, claims: bool = False
) -> Callable[Concatenate[Within, P], T]:
    """Offer a writing unit as a method of an open transaction.

    Behind a savepoint: a call that raises leaves nothing, also when the block goes on.

    Args:
        prepare: returns the unit.
        claims: whether it needs this process's claim on the file.
    """

    @wraps(prepare)
    def method(self: Within, /, *args: P.args, **kwargs: P.kwargs) -> T:
        unit = prepare(*args, **kwargs)
        if claims:
            # Inside a transaction, but once in the life of an open file.
            self.claim()
        with self.database.savepoint():
            return unit(self.database)

    return with_signature(method, prepare)


def reads_within(prepare: Callable[P, ReadUnit[T]]) -> Callable[Concatenate[Within, P], T]:
    """Offer a reading unit as a method of an open transaction."""

    @wraps(prepare)
    def method(self: Within, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return prepare(*args, **kwargs)(self.database)

    return with_signature(method, prepare)
