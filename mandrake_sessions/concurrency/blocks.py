"""``with`` blocks that end by every way of leaving them.

A signal's handler may raise at the first step of any Python function, so also at the beginning of
an ``__exit__`` that is written in Python. That ``__exit__`` then does nothing, and a caller that
keeps the traceback keeps the open resource. So the ``with`` statement gets a callable to which
nothing else refers. The statement drops it when it is left, in any way. If the block has not ended
by then, it is ended at that moment, before the exception goes on::

    with statement   ─ enters ─ its body ─ __exit__: Ctrl-C ─ raises it, drops its way out
                                                               └─► the block ends

If a second signal interrupts that, a thread ends the blocks that hold a lease.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from mandrake_sessions.concurrency.fork import after_fork
from mandrake_sessions.log import get_logger

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

WayOut = Callable[
    [type[BaseException] | None, BaseException | None, TracebackType | None], bool | None
]
"""The callable that a ``with`` statement calls when its block is left."""


class _Exit:
    """The ``__exit__`` of a block: gives each statement a way out that only it refers to."""

    def __get__(self, block: Block[Any] | None, owner: type[Block[Any]]) -> Callable[..., Any]:
        if block is None:
            # An ExitStack asks the class; its object is ended with the stack, or when collected.
            return _leave
        way_out = partial(_leave, block)
        # A block that is entered has its statement, or an ExitStack: then the host only checks
        # that it could be left.
        if not block.is_entered and (block._left is None or block._left() is None):
            left = _Left(way_out, _end)
            left.block = block
            # The newest callback runs first: it records the block even if its end is interrupted.
            left.spare = _Left(way_out, _were_left.append) if block.holds_a_lease else None
            if left.spare is not None:
                left.spare.block = block
            block._left = left
        return way_out


def _leave(
    block: Block[Any],
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> bool | None:
    return block._leave(kind, error, traceback)


class Block(Generic[T_co]):
    """A context manager whose block ends even if ``__exit__`` is interrupted before it begins.

    Attributes:
        is_entered: whether its block has begun and has not ended.
        holds_a_lease: whether it may be ended in any thread, because what it uses is its own, and
            before this thread takes another lease.
        ends_in_any_thread: whether it may be ended in any thread, at any time.
    """

    is_entered: bool = False
    holds_a_lease = False
    ends_in_any_thread = False
    _left: _Left | None = None

    def __enter__(self) -> T_co:
        self.is_entered = True
        return self._enter()

    if TYPE_CHECKING:

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
        ) -> bool | None: ...

    else:
        __exit__ = _Exit()

    def _enter(self) -> T_co:
        """Begin it; ``_end`` undoes what an interruption leaves behind."""
        raise NotImplementedError

    def _leave(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool | None:
        """End it, in the thread that leaves it."""
        self._end()
        self._note_ended()
        return None

    def _end(self) -> None:
        """End it if it has not ended, perhaps in another thread; may be called again."""
        raise NotImplementedError

    def _note_ended(self) -> None:
        """Note that nothing is left to be ended."""
        self.is_entered = False
        self._left = None


class GeneratorBlock(Block[T_co]):
    """A block whose beginning and end are written as one generator function.

    Args:
        generator: yields once; its end releases everything.
    """

    def __init__(self, generator: Iterator[T_co]) -> None:
        self._generator: Any = generator

    def _enter(self) -> T_co:
        try:
            value: T_co = next(self._generator)
        except StopIteration:
            raise RuntimeError("The generator did not yield.") from None
        return value

    def _leave(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        # A signal comes inside the generator's ``try``, because its frame is suspended there.
        try:
            if error is None:
                try:
                    next(self._generator)
                except StopIteration:
                    return False
                raise RuntimeError("The generator did not stop.")
            try:
                self._generator.throw(error)
            except StopIteration as stop:
                return stop is not error
            except RuntimeError as failure:
                if failure is error:
                    failure.__traceback__ = traceback
                    return False
                if isinstance(error, StopIteration) and failure.__cause__ is error:
                    error.__traceback__ = traceback
                    return False
                raise
            except BaseException as failure:
                if failure is not error:
                    raise
                failure.__traceback__ = traceback
                return False
            raise RuntimeError("The generator did not stop after throw().")
        finally:
            if self._generator.gi_frame is None:
                self._note_ended()

    def _end(self) -> None:
        self._generator.close()


def block(make: Callable[P, Iterator[T]]) -> Callable[P, GeneratorBlock[T]]:
    """Make a block of a generator function, as ``contextlib.contextmanager`` does.

    Args:
        make: the generator function.
    """

    @functools.wraps(make)
    def begin(*args: P.args, **kwargs: P.kwargs) -> GeneratorBlock[T]:
        return GeneratorBlock(make(*args, **kwargs))

    return begin


@block
def closing(resource: Any) -> Iterator[Any]:
    """Close a resource at the end of a block, as ``contextlib.closing`` does."""
    try:
        yield resource
    finally:
        resource.close()


class EnclosingBlock(Block[T_co]):
    """A block around another one that has a lease: it ends with that one, and as that one does."""

    holds_a_lease = True
    _enclosed: Block[Any] | None = None

    def _begin_enclosed(self, enclosed: Block[T]) -> T:
        """Begin the other block, and return its value."""
        self._enclosed = enclosed
        return enclosed.__enter__()

    def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._enclosed is not None
        try:
            return self._enclosed._leave(kind, error, traceback)
        finally:
            if not self._enclosed.is_entered:
                self._note_ended()

    def _end(self) -> None:
        if self._enclosed is not None:
            self._enclosed._end()


# -- blocks that were left without their end --------------------------------------------------


class _Left(weakref.ref[Any]):
    """A weak reference that shows that a statement was left: its way out is gone."""

    # Not slots: a signal may come before they are set.
    block: Block[Any] | None = None
    spare: _Left | None = None

    @property
    def is_due(self) -> bool:
        """Whether the block began with this statement, and has not ended."""
        if self.block is None or not self.block.is_entered:
            return False
        present = self.block._left
        return present is not None and (present is self or present.spare is self)

    def end(self) -> None:
        """End the block if that is due."""
        if self.is_due and self.block is not None:
            self.block._end()
            self.block._note_ended()


def _end(left: _Left) -> None:
    try:
        left.end()
        if left.spare is not None:
            with contextlib.suppress(ValueError):
                _were_left.remove(left.spare)
    except Exception:  # noqa: BLE001  # a callback has no caller that could handle it
        get_logger(__name__).exception("block_not_ended")
    finally:
        # Another signal. Only the main thread is interrupted by one.
        if left.is_due and left.spare is not None:
            _call_in_thread(end_what_was_left)
        elif left.is_due and left.block is not None and left.block.ends_in_any_thread:
            _call_in_thread(partial(_end_again, left))


def _call_in_thread(end: Callable[[], object]) -> None:
    try:
        start_new_thread(end, ())
    except RuntimeError:
        # The system has no thread left, or the interpreter ends. Here a third signal may come.
        end()


def _end_again(left: _Left) -> None:
    try:
        left.end()
    except Exception:  # noqa: BLE001  # a callback has no caller that could handle it
        get_logger(__name__).exception("block_not_ended")


_were_left: Final[deque[_Left]] = deque()
# Re-entrant, so that a finalizer or a signal's handler that arrives here meanwhile can check it.
_ending = threading.RLock()


def end_what_was_left() -> bool:
    """End the blocks with a lease that were left without their end; return whether any were."""
    if not _were_left or _ending._is_owned():  # type: ignore[attr-defined]  # of C's RLock
        return False
    with _ending:
        while _were_left:
            left = _were_left[0]
            try:
                left.end()
            except Exception:  # noqa: BLE001  # the next one must end too
                get_logger(__name__).exception("block_not_ended")
            with contextlib.suppress(ValueError):
                _were_left.remove(left)
    return True


def _forget_after_fork() -> None:
    # Blocks that the parent's threads have left are the parent's.
    global _ending  # noqa: PLW0603  # another thread of the parent may have held it
    _ending = threading.RLock()
    _were_left.clear()


after_fork(_forget_after_fork)
