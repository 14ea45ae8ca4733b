"""A stage on which threads are moved step by step, so that every order of their steps is tried.

Real methods of real objects are wrapped: an actor that comes to one stops there until it is moved
on. Other threads pass. An actor that waits for another one is marked so, and stays meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from time import monotonic
from types import FrameType
from typing import Any

import pytest
from kits.waiting import PATIENCE

_UNANNOUNCED = 0.03
# An actor that does not come to its next step by then may wait for a lock that is not watched. On a
# machine under load it may only be slow: it waits if its thread sleeps, and was not run meanwhile.
_PAUSE = 0.004
_LONGEST = 1.0
# One that looks at a lock again and again is run, and is waited for so long.
_MOST_ORDERS = 2_000


class Actor:
    """A thread on the stage.

    Attributes:
        place: the step it stands before; None while it runs.
        error: what its work raised.
    """

    def __init__(self, name: str, work: Callable[[], Any], lines_of: tuple[Any, ...]) -> None:
        self.name = name
        self.work = work
        self.codes = {each.__code__ for each in lines_of}
        self.place: str | None = None
        self.waits_until: Callable[[], bool] | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_over = False
        self.thread: threading.Thread | None = None

    @property
    def is_settled(self) -> bool:
        """Whether it does nothing by itself: over, before a step, or waiting for another."""
        waits = self.waits_until is not None and not self.waits_until()
        return self.is_over or self.place is not None or waits

    def activity(self) -> str | None:
        """What changes whenever its thread is run; None if it is run now, or waits for a core."""
        assert self.thread is not None
        try:
            status = Path(f"/proc/self/task/{self.thread.native_id}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""  # another system, or it has just ended
        lines = dict(line.split(":", 1) for line in status.splitlines())
        if not lines["State"].lstrip().startswith("S"):
            return None
        return "".join(value for name, value in lines.items() if name.endswith("ctxt_switches"))

    @property
    def ident(self) -> int:
        """The number of its thread."""
        assert self.thread is not None
        return self.thread.ident or 0

    def result(self) -> Any:
        """Return what its work returned, or raise what it raised."""
        assert self.is_over
        if self.error is not None:
            raise self.error
        return self.value


class Stage:
    """One performance: the actors' steps in one order.

    Args:
        plan: which of those who can move is moved, at each step; the first one after its end.
        patch: undone after the performance.
    """

    def __init__(self, plan: list[int], patch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        self.decisions: list[tuple[int, int]] = []
        self._plan = plan
        self._patch = patch
        self._actors: dict[int, Actor] = {}
        self._cast: list[Actor] = []
        self._is_over = False
        self._condition = threading.Condition()

    # -- preparing ------------------------------------------------------------------------------

    def actor(self, name: str, work: Callable[[], Any], *, lines_of: tuple[Any, ...] = ()) -> Actor:
        """Add a thread; its first step is to begin.

        Args:
            name: for the order that is printed when a test fails.
            work: what it does.
            lines_of: functions of which each line is a step, for this actor.
        """
        self._cast.append(Actor(name, work, lines_of))
        return self._cast[-1]

    def stop_before(self, owner: Any, name: str, *others: str) -> None:
        """Have actors stop before a method or function is called, and before ``others``."""
        for each in (name, *others):
            self._wrap(owner, each, before=each)

    def stop_after(self, owner: Any, name: str, *others: str) -> None:
        """Have actors stop when a method or function has returned or raised."""
        for each in (name, *others):
            self._wrap(owner, each, after=f"{each} done")

    def watch_event(self, owner: type, name: str) -> None:
        """Show the stage each actor that waits for the Event that new instances of a class keep."""
        self._replace(owner, name, self.event)

    def event(self, real: threading.Event) -> Any:
        """Return an Event that shows the stage each actor that waits for it."""
        return _Event(self, real)

    def watch_lock(
        self, owner: type, name: str, *, interrupted: str = "", has_lock: bool = False
    ) -> None:
        """Show the stage each actor that waits for the lock that new instances of a class keep.

        Args:
            owner: the class.
            name: of the attribute.
            interrupted: an actor whose first waiting ends by a KeyboardInterrupt; when, is a step.
            has_lock: whether the signal comes once it has the lock, if it can have it.
        """
        self._replace(owner, name, lambda real: _Lock(self, real, interrupted, has_lock))

    def _wrap(self, owner: Any, name: str, *, before: str = "", after: str = "") -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def stopping(*args: Any, **options: Any) -> Any:
            if before:
                self.step(before)
            try:
                return real(*args, **options)
            finally:
                if after:
                    self.step(after)

        self._patch.setattr(owner, name, stopping)

    def _replace(self, owner: type, name: str, make: Callable[[Any], Any]) -> None:
        really_make = owner.__init__  # type: ignore[misc]

        def making(instance: Any, *args: Any, **options: Any) -> None:
            really_make(instance, *args, **options)
            setattr(instance, name, make(getattr(instance, name)))

        self._patch.setattr(owner, "__init__", making)

    def is_actor(self, name: str) -> bool:
        """Return whether the thread that asks is the actor of this name."""
        actor = self._actors.get(get_ident())
        return actor is not None and actor.name == name

    # -- in the actors' threads -----------------------------------------------------------------

    def step(self, place: str) -> None:
        """Stop here until this actor is moved on; others pass."""
        actor = self._actors.get(get_ident())
        if actor is None or self._is_over:
            return
        with self._condition:
            actor.place = place
            self._condition.notify_all()
            moved = self._condition.wait_for(
                lambda: actor.place is None or self._is_over, 2 * PATIENCE
            )
            assert moved

    @contextlib.contextmanager
    def waiting(self, until: Callable[[], bool]) -> Iterator[None]:
        """Say that this actor waits; when it is woken, going on is a step."""
        actor = self._actors.get(get_ident())
        if actor is None:
            yield
            return
        with self._condition:
            actor.waits_until = until
            self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                actor.waits_until = None
                self._condition.notify_all()
        self.step("woken")

    def _run(self, actor: Actor) -> None:
        self._actors[get_ident()] = actor
        self.step("begin")
        if actor.codes:
            sys.settrace(functools.partial(self._trace, actor))
        try:
            actor.value = actor.work()
        except BaseException as error:  # noqa: BLE001  # the test asks for it
            actor.error = error
        finally:
            sys.settrace(None)
            with self._condition:
                actor.is_over = True
                self._condition.notify_all()

    def _trace(self, actor: Actor, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code not in actor.codes:
            return None
        if event == "line":
            self.step(f"{frame.f_code.co_name}:{frame.f_lineno - frame.f_code.co_firstlineno}")
        return functools.partial(self._trace, actor)

    # -- the performance ------------------------------------------------------------------------

    def play(self) -> None:
        """Move the actors, one step at a time, until all of them are over."""
        for actor in self._cast:
            actor.thread = threading.Thread(target=self._run, args=(actor,), daemon=True)
            actor.thread.start()
        try:
            while (ready := self._ready()) is not None:
                self._move(ready)
        finally:
            with self._condition:
                self._is_over = True
                self._condition.notify_all()
        for actor in self._cast:
            assert actor.thread is not None
            actor.thread.join(PATIENCE)

    def _ready(self) -> list[Actor] | None:
        """Return who can be moved, None if all are over."""
        with self._condition:
            self._wait_until_settled()
            came = self._condition.wait_for(
                lambda: all(a.is_over for a in self._cast) or any(a.place for a in self._cast),
                PATIENCE,
            )
            assert came, f"stuck: {[a.name for a in self._cast if not a.is_over]}"
            return [a for a in self._cast if a.place is not None] or None

    def _wait_until_settled(self) -> None:
        """Wait until each actor is settled, or waits for a lock that is not watched."""

        def is_settled() -> bool:
            return all(actor.is_settled for actor in self._cast)

        if self._condition.wait_for(is_settled, _UNANNOUNCED):
            return
        until = monotonic() + _LONGEST
        before: list[str | None] = []
        while monotonic() < until:
            now = [actor.activity() for actor in self._cast if not actor.is_settled]
            if now == before and None not in now:
                return
            before = now
            if self._condition.wait_for(is_settled, _PAUSE):
                return

    def _move(self, ready: list[Actor]) -> None:
        number = len(self.decisions)
        wanted = self._plan[number] if number < len(self._plan) else 0
        actor = ready[min(wanted, len(ready) - 1)]
        # The wanted number, so that the next plan is another one, also if it was not possible.
        self.decisions.append((wanted, max(wanted + 1, len(ready))))
        with self._condition:
            self.order.append(f"{actor.name} {actor.place}")
            actor.place = None
            self._condition.notify_all()


class _Event:
    def __init__(self, stage: Stage, real: threading.Event) -> None:
        self._stage = stage
        self._real = real

    def wait(self, timeout: float | None = None) -> bool:
        if self._real.is_set():
            return True
        with self._stage.waiting(self._real.is_set):
            return self._real.wait(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Lock:
    def __init__(self, stage: Stage, real: Any, interrupted: str, has_lock: bool) -> None:
        self._stage = stage
        self._real = real
        self._is_released = False
        self._is_interrupted = stage.is_actor(interrupted)
        self._has_lock = has_lock

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._is_interrupted:
            self._is_interrupted = False
            self._stage.step("interrupted")
            if self._has_lock and self._is_released:
                self._real.acquire()
                self._is_released = False
            raise KeyboardInterrupt
        with self._stage.waiting(lambda: self._is_released):
            got: bool = self._real.acquire(blocking, timeout)
            self._is_released = False
        return got

    def release(self) -> None:
        # Before, or the stage could take the one who is woken for one who waits.
        self._is_released = True
        self._real.release()


@dataclass(frozen=True)
class Orders:
    """The orders that were tried.

    Attributes:
        tried: each order, as the steps one after the other.
    """

    tried: list[str]

    def __len__(self) -> int:
        return len(self.tried)

    def having(self, *steps: str) -> list[str]:
        """Return the orders in which these steps come, in this order."""

        def has(order: str) -> bool:
            at = 0
            for each in steps:
                at = order.find(each, at)
                if at < 0:
                    return False
                at += len(each)
            return True

        return [order for order in self.tried if has(order)]


def explore(story: Callable[[Stage], None]) -> Orders:
    """Have a story played in every order of its actors' steps.

    Args:
        story: makes the objects, wraps them, names the actors, plays, and looks at what came of it.
    """
    tried: list[str] = []
    plan: list[int] = []
    while True:
        with pytest.MonkeyPatch.context() as patch:
            stage = Stage(plan, patch)
            try:
                story(stage)
            except BaseException as error:
                error.add_note(f"in the order: {', '.join(stage.order)}")
                raise
        tried.append(", ".join(stage.order))
        assert len(tried) < _MOST_ORDERS
        decisions = stage.decisions
        while decisions and decisions[-1][0] + 1 >= decisions[-1][1]:
            decisions.pop()
        if not decisions:
            return Orders(tried)
        plan = [chosen for chosen, _ in decisions]
        plan[-1] += 1


class Thread:
    """A function in a thread of its own, next to the stage."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.value: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._work()
        except BaseException as error:  # noqa: BLE001  # the one who asks gets it
            self.error = error

    @property
    def is_over(self) -> bool:
        """Whether it has returned or raised."""
        return not self._thread.is_alive()

    def result(self) -> Any:
        """Wait for its end; return what it returned or raise what it raised."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the thread hangs"
        if self.error is not None:
            raise self.error
        return self.value


class Holding:
    """A block that a thread of its own keeps open until ``let_go``.

    Args:
        scope: such as ``handle.write``.
        first: what it does first with what the scope gives.
        then: what it does once it is let go.
    """

    def __init__(
        self,
        scope: Callable[[], contextlib.AbstractContextManager[Any]],
        first: Callable[[Any], Any] = lambda _: None,
        then: Callable[[Any], Any] = lambda _: None,
    ) -> None:
        self._has_it, self._may_go = threading.Event(), threading.Event()

        def hold() -> None:
            with scope() as lent:
                first(lent)
                self._has_it.set()
                assert self._may_go.wait(2 * PATIENCE)
                then(lent)

        self.thread = Thread(hold)
        assert self._has_it.wait(PATIENCE)

    def let_go(self) -> Any:
        """Have the block end, and wait for that."""
        self._may_go.set()
        return self.thread.result()


def _is_in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def interrupted_at(
    number: int, work: Callable[[], Any], *, keeps: bool = False
) -> BaseException | None:
    """Call ``work`` with a KeyboardInterrupt at its call number ``number``, as a signal comes.

    Handlers of signals run where a function begins and where a call of one in C has returned.

    Args:
        number: of the call.
        work: the call that is interrupted.
        keeps: whether the error keeps its traceback, and so all that its frames refer to.

    Returns:
        What was raised.
    """
    calls = itertools.count()

    def look(frame: FrameType, event: str, _what: object) -> None:
        # In what the garbage collector calls, or when a generator is closed, it is swallowed.
        code = frame.f_code
        is_ours = "mandrake_sessions" in code.co_filename
        is_ours = is_ours and code.co_name not in {"callers_outside", "__del__", "<genexpr>"}
        if is_ours and event in {"call", "c_return"} and next(calls) >= number:
            if _is_in_finalizer(frame):
                return
            sys.setprofile(None)
            raise KeyboardInterrupt(f"{event} {frame.f_code.co_qualname}:{frame.f_lineno}")

    sys.setprofile(look)
    try:
        work()
    except BaseException as error:  # noqa: BLE001  # handed to the one who looks
        return error if keeps else error.with_traceback(None)
    finally:
        sys.setprofile(None)
    return None
