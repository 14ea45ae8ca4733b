"""How a method of ``SessionManager`` becomes one to await, with its signature and its docstring."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from mandrake_sessions.aio.calls import Call, EscapedError
from mandrake_sessions.aio.cancellation import cancelled_call
from mandrake_sessions.aio.opening import AsyncOpening
from mandrake_sessions.aio.writer import AsyncTurnWriter
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.engine.transaction import WriteTransaction
from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.live.streaming.writer import TurnWriter
from mandrake_sessions.manager import SessionManager
from mandrake_sessions.methods import RECIPE, Recipe
from mandrake_sessions.models import TurnStatus
from mandrake_sessions.session_transaction import SessionTransaction

P = ParamSpec("P")
T = TypeVar("T")


def awaits(
    method: Callable[Concatenate[SessionManager, P], T],
) -> Callable[Concatenate[AsyncOpening, P], Coroutine[Any, Any, T]]:
    """Offer a method of ``SessionManager`` as a coroutine function."""
    recipe: Recipe = getattr(method, RECIPE)
    prepare, kind, claims = recipe.prepare, recipe.kind, recipe.claims
    name, is_write = prepare.__name__, recipe.kind == "write"

    @functools.wraps(method)
    async def twin(self: AsyncOpening, /, *args: P.args, **kwargs: P.kwargs) -> T:
        handle = self.open_handle()
        call: Call[T] = Call(prepare(*args, **kwargs), name, handle, claims=claims)
        return await call.outcome(self.worker(kind), is_write=is_write)

    return twin


def streams(
    method: Callable[Concatenate[SessionManager, P], TurnWriter],
) -> Callable[Concatenate[AsyncOpening, P], AsyncTurnWriter]:
    """Offer ``stream_turn`` for an ``async with`` block."""

    def twin(self: AsyncOpening, /, *args: P.args, **kwargs: P.kwargs) -> AsyncTurnWriter:
        """Return what streams a turn: ``async with sessions.stream_turn(…) as turn:``.

        The block begins the turn; the arguments are those of ``SessionManager.stream_turn``.
        """
        handle = self.open_handle()
        timeout: Any = kwargs.get("timeout")

        async def begin() -> TurnWriter:
            def start(_: None) -> TurnWriter:
                # What the worker's queue has taken is not given again.
                kwargs["timeout"] = call.budget.left()
                return method(self.sync, *args, **kwargs)

            call: Call[TurnWriter] = Call(start, "stream_turn", handle, timeout, is_whole=True)
            try:
                return await call.outcome(self.worker("write"), is_write=True)
            except asyncio.CancelledError as error:
                begun = cancelled_call(error)
                if begun is not None and begun.is_committed:
                    # Stored in the background; nobody has the writer.
                    begun.result.begin_end(TurnStatus.INTERRUPTED)
                raise

        return AsyncTurnWriter(handle, begin)

    twin.__name__ = method.__name__
    twin.__qualname__ = f"AsyncSessionManager.{method.__name__}"
    told = inspect.signature(method)
    twin.__signature__ = told.replace(  # type: ignore[attr-defined]
        return_annotation="AsyncTurnWriter"
    )
    return twin


def hosts_unit(
    work: Callable[[SessionTransaction], T], handle: Handle
) -> Callable[[WriteTransaction], T]:
    """Return a host's function as a unit."""

    def unit(database: WriteTransaction) -> T:
        try:
            result = work(SessionTransaction(database, handle.claim))
        except Exception:
            raise
        except BaseException as error:
            # Units that share the transaction must not be undone by it.
            raise EscapedError(error) from error
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise InvalidArgumentError("work must not return an awaitable.")
        return result

    return unit
