"""Objects that are closed at the end of a ``with`` statement, by every way of leaving it."""

from __future__ import annotations

import weakref
from functools import partial
from operator import attrgetter
from types import MethodType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from mandrake_sessions.concurrency.blocks import Block, WayOut
from mandrake_sessions.errors import MandrakeSessionsError


class _Enter(property):
    """The ``__enter__`` of a resource: a call of its statement, which C binds and makes.

    No frame refers to the resource before its block has begun. So a resource that no caller got,
    because a signal's handler raised there, is collected at once, even if the traceback is kept.
    """

    def __init__(self) -> None:
        super().__init__(partial(MethodType, attrgetter("_statement.entered")))

    def __call__(self, resource: Resource) -> Any:
        # An ExitStack asks the class, and keeps the resource itself.
        return resource._on_enter()


class _Leave(property):
    """The ``__exit__`` of a resource: a way out that its statement makes."""

    def __init__(self) -> None:
        super().__init__(attrgetter("_statement.way_out"))

    def __call__(
        self, resource: Resource, _kind: object, error: BaseException | None, _traceback: object
    ) -> None:
        resource._on_exit(error)


class Resource:
    """An object that is closed when a ``with`` statement is left.

    It may be open before the statement, and be used again after it.
    """

    def __init__(self) -> None:
        self._statement = _Statement(self)

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
        ) -> None: ...

    else:
        __enter__ = _Enter()
        __exit__ = _Leave()

    def _on_enter(self) -> Self:
        """Open it, unless it is open."""
        return self

    def _on_exit(self, _error: BaseException | None) -> None:
        """Close it at the end of the block, which an error may have ended."""
        self._on_left()

    def _on_left(self) -> None:
        """Close it if it is open; called again if a signal's handler has interrupted it."""
        raise NotImplementedError


class _Statement(Block[Any]):
    """The block of a resource."""

    ends_in_any_thread = True

    def __init__(self, resource: Resource) -> None:
        # Weak, so that a resource that is dropped is collected at once.
        self._known = weakref.ref(resource)
        self._used: Resource | None = None

    @property
    def entered(self) -> Any:
        """Begin the block, and return the value for the statement."""
        return self.__enter__()

    @property
    def way_out(self) -> WayOut:
        """The callable that the statement calls at its end."""
        return self.__exit__

    def _enter(self) -> Any:
        self._used = resource = self._known()
        assert resource is not None
        return resource._on_enter()

    def _leave(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        resource = self._known()
        try:
            if resource is not None:
                resource._on_exit(error)
        except (MandrakeSessionsError, ExceptionGroup):
            # The close has failed, and another attempt would wait as long.
            self._note_ended()
            raise
        self._note_ended()

    def _end(self) -> None:
        resource = self._known()
        if resource is not None:
            resource._on_left()

    def _note_ended(self) -> None:
        super()._note_ended()
        self._used = None
