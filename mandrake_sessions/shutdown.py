"""The graceful shutdown hook: a signal closes everything once, then the former handler runs.

A Python signal handler runs inside the main thread, perhaps while that holds a lease or waits for
one. So this handler only refuses new work and wakes a closing thread. That thread does the rest and
then sends the signal again, to be handled as if the hook had never been installed::

    main thread       ─ work ─┐handler: refuse, wake┌─ work ends or is interrupted ─┐former handler
    closing thread     waits  └─► close managers, close pools, report ─ signal again ┘

A second thread, started at once too, closes the parts, one at a time; the closing thread goes on
without a part that takes too long.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from types import FrameType
from typing import Any, Protocol

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.fork import current_pid
from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.concurrency.spare_thread import SpareThread
from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.database.error_codes import pass_on_timeout
from mandrake_sessions.database.pool.pool import ConnectionPool, default_pool
from mandrake_sessions.errors import InvalidArgumentError, ShutdownHookError, ThreadStartError
from mandrake_sessions.log import get_logger

DEFAULT_SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEFAULT_TIMEOUT = 10.0
"""Seconds that closing may take in all."""

_WORKER = "mandrake-shutdown-worker"

_Former = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class Closeable(Protocol):
    """An object that a hook can close: a manager, or an object of the host."""

    def close(self) -> object:
        """Close it; called once, in the closing thread."""


class ShutdownReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a shutdown.

    Attributes:
        signal: the signal that asked for it.
        seconds: how long it took.
        failures: the errors of closing; empty if all parts closed.
    """

    signal: int
    seconds: float
    failures: tuple[BaseException, ...]


class _State(enum.Enum):
    WAITING = "waiting"
    CLOSING = "closing"
    UNWINDING = "unwinding"
    FINISHED = "finished"


class ShutdownHook:
    """The result of ``install_shutdown_hook``; ``uninstall()`` removes the hook.

    Attributes:
        report: the result of the shutdown, None before it is over.
    """

    def __init__(self, signals: Iterable[int], timeout: float) -> None:
        self.report: ShutdownReport | None = None
        self._timeout = timeout
        self._pid = current_pid()
        self._state = _State.WAITING
        self._number = 0
        self._closeables: list[Closeable] = []
        self._pools: list[ConnectionPool] = []
        # Its put() may interrupt another put(), as a handler needs.
        self._received: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._finished = Gate()
        self._former: dict[int, _Former] = {}
        # Closes the parts, so that one which hangs holds nothing else back. None: it hangs, and no
        # other thread can be started.
        self._worker: SpareThread | None = SpareThread(_WORKER)
        try:
            self.add_signals(signals)
            self._worker.start()
            self._thread = threading.Thread(
                target=self._wait_and_close, name="mandrake-shutdown", daemon=True
            )
            start(self._thread)
            atexit.register(self._let_it_finish)
        except BaseException:
            self._restore()
            # Threads that Ctrl-C has not kept from starting end.
            self._end_threads()
            raise

    def add_signals(self, signals: Iterable[int]) -> None:
        """Handle these signals too; signals that are handled already stay so.

        Args:
            signals: their numbers. One that is ignored, as under ``nohup``, stays ignored.

        Raises:
            ShutdownHookError: one of them cannot be handled, or this is not the main thread.
        """
        try:
            for number in signals:
                former = signal.getsignal(number)
                if number not in self._former and former is not signal.SIG_IGN:
                    if threading.current_thread() is not threading.main_thread():
                        raise ShutdownHookError
                    self._replace(number, former)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError):
                pass_on_timeout(error)
            raise ShutdownHookError("One of the signals cannot be handled.") from error

    def _replace(self, number: int, former: Any) -> None:
        # First: so the handler can be restored, whatever interrupts this thread.
        self._former[number] = former
        try:
            signal.signal(number, self._handle)
        except BaseException:
            if signal.getsignal(number) != self._handle:
                del self._former[number]
            raise

    def add(self, closeables: Iterable[Closeable], pool: ConnectionPool) -> None:
        """Add objects that are closed at the shutdown; one that was added before is closed once.

        Args:
            closeables: the objects; they are closed in this order, after those of earlier calls.
            pool: the pool that is closed after all of them.
        """
        self._closeables += [each for each in closeables if each not in self._closeables]
        if pool not in self._pools:
            self._pools.append(pool)

    @property
    def is_installed(self) -> bool:
        """Whether its handlers are installed and no signal has come yet."""
        return (
            self._state is _State.WAITING
            and self._pid == current_pid()
            and all(signal.getsignal(number) == self._handle for number in self._former)
        )

    def wait(self, timeout: float | None = None) -> ShutdownReport | None:
        """Wait until a shutdown is over and its signal was sent again.

        Args:
            timeout: seconds to wait at most; None for no limit.

        Returns:
            Its result; None if it is not over by then.
        """
        self._finished.wait(timeout)
        return self.report

    def uninstall(self) -> None:
        """Restore the former handlers and end the closing thread; main thread only."""
        try:
            self._restore()
            atexit.unregister(self._let_it_finish)
            self._end_threads()
        except BaseException:
            # Ctrl-C interrupted it. In this order: without the thread, a signal that this hook
            # still handles would not end the process.
            self._restore()
            self._end_threads()
            raise
        if self._state is _State.WAITING:
            self._thread.join()
            if self._worker is not None:
                self._worker.join()

    def _end_threads(self) -> None:
        if self._state is _State.WAITING:
            self._received.put(None)
            if self._worker is not None:
                self._worker.end()

    # -- in the main thread, inside a signal's handler -----------------------------------------

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._pid != current_pid():
            # A forked child inherits the handler, but neither the thread nor open parts.
            self._run_former(number, frame)
        elif self._state is _State.WAITING:
            self._state = _State.CLOSING
            self._number = number
            try:
                for pool in self._pools:
                    pool.refuse_new_work()
            finally:
                # In any case: no other signal will wake the closing thread.
                self._received.put(number)
        elif self._state is _State.UNWINDING:
            # The main thread holds a lease and does not end its block.
            self._state = _State.CLOSING
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        elif self._state is _State.FINISHED and number == self._number:
            self._run_former(number, frame)
        # During the closing, which is bounded in time, further signals change nothing. Nor does one
        # that is handled only now, before the signal that was sent again.

    def _run_former(self, number: int, frame: FrameType | None) -> None:
        former = self._former.get(number)
        self._restore()
        if callable(former):
            former(number, frame)
        elif former == signal.SIG_DFL:
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, former in self._former.items():
            # A later handler of the host stays. None: the former handler was not Python's.
            if former is not None and signal.getsignal(number) == self._handle:
                signal.signal(number, former)

    # -- in the closing thread -----------------------------------------------------------------

    def _wait_and_close(self) -> None:
        number = self._received.get()
        if number is None:
            return
        try:
            self._close_and_report(number)
        finally:
            # Also if a log cannot be written: a process that no signal ends would be worse.
            self._state = _State.FINISHED
            _signal_main_thread(number)
            if self._worker is not None:
                self._worker.end()
            self._finished.set()

    def _close_and_report(self, number: int) -> None:
        began = monotonic()
        failures: list[BaseException] = []
        self._close_all(began + self._timeout, failures, number)
        self.report = ShutdownReport(
            signal=number, seconds=monotonic() - began, failures=tuple(failures)
        )
        log = get_logger(__name__)
        for failure in failures:
            log.error("shutdown_failed", error=type(failure).__name__, detail=str(failure))

    def _close_all(self, deadline: float, failures: list[BaseException], number: int) -> None:
        for closeable in self._closeables:
            name = type(closeable).__name__
            if self._worker is None:
                # In this thread it could hang, and the files would stay open.
                failures.append(ThreadStartError(f"no thread can be started that closes {name}"))
                continue
            # Half of the remaining time, so that a part that hangs leaves time for the others.
            seconds = (deadline - monotonic()) / 2
            if not self._worker.run(partial(_close, closeable, failures), seconds):
                failures.append(TimeoutError(f"closing {name} did not end in time"))
                self._replace_worker(self._worker)
        close_pools = partial(self._close_pools, deadline, failures, number)
        if self._worker is None:
            close_pools()
        elif not self._worker.run(close_pools, deadline + 1.0 - monotonic()):
            failures.append(TimeoutError("closing did not end in time"))

    def _replace_worker(self, hung: SpareThread) -> None:
        hung.end()
        worker = SpareThread(_WORKER)
        try:
            worker.start()
            self._worker = worker
        except ThreadStartError:
            self._worker = None

    def _close_pools(self, deadline: float, failures: list[BaseException], number: int) -> None:
        for pool in self._pools:
            left = max(0.0, deadline - monotonic())
            try:
                pool.close(left, on_stuck=lambda thread: self._unwind(thread, number))
            except ExceptionGroup as group:
                failures.extend(group.exceptions)
            except BaseException as error:  # noqa: BLE001  # one pool must not keep the rest open
                failures.append(error)

    def _unwind(self, thread: int, number: int) -> None:
        """Make the main thread leave the block in which it holds a lease."""
        if thread == threading.main_thread().ident:
            self._state = _State.UNWINDING
            _signal_main_thread(number)

    def _let_it_finish(self) -> None:
        """At exit: wait until a shutdown that has begun is over and has sent its signal."""
        if self._state is not _State.WAITING and self._pid == current_pid():
            # The former handler may raise it here, where no caller is left to catch it: the program
            # has ended by itself meanwhile, perhaps because its stream was closed.
            with contextlib.suppress(KeyboardInterrupt):
                self._thread.join()


def _close(closeable: Closeable, failures: list[BaseException]) -> None:
    try:
        closeable.close()
    except BaseException as error:  # noqa: BLE001  # one part must not keep the rest open
        failures.append(error)


def _signal_main_thread(number: int) -> None:
    """Send a signal to the main thread itself, which may be waiting in a system call."""
    if hasattr(signal, "pthread_kill"):
        main = threading.main_thread().ident
        if main is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)


def _signal_numbers(signals: object) -> tuple[int, ...]:
    try:
        numbers: tuple[object, ...] | None = tuple(signals)  # type: ignore[arg-type]  # whatever
    except Exception:  # noqa: BLE001  # it is not iterable, or a host's own that raises
        numbers = None
    if numbers is None:
        raise InvalidArgumentError("signals must be signals.")
    return tuple(arguments.index("signals", each) for each in numbers)


_installed: ShutdownHook | None = None


def install_shutdown_hook(
    *closeables: Closeable,
    pool: ConnectionPool | None = None,
    signals: Iterable[int] = DEFAULT_SIGNALS,
    timeout: float = DEFAULT_TIMEOUT,
) -> ShutdownHook:
    """Close everything when a signal asks the process to end; call it in the main thread.

    On the first of the signals new work is refused with ``PoolClosedError``. Work under way gets
    half of ``timeout`` to end by itself, then it is interrupted and rolled back; a main thread
    that holds a lease is unwound by ``KeyboardInterrupt`` (SIGINT) or ``SystemExit``. Then the
    ``closeables`` and the pool's files are closed, also if some of them fail, and the former
    handler runs: where that is the system's default, the process ends by the signal.

    Calling it again adds what is to be closed, and signals, to the hook that is installed; the
    ``timeout`` of the first call stands. Works in scripts, with threads, and under asyncio.

    Args:
        closeables: managers, or anything with ``close()``, closed in this order.
        pool: the pool to close after them; None for the process's ``default_pool()``.
        signals: which signals, SIGINT and SIGTERM by default.
        timeout: seconds that closing may take in all, 0 to 86,400.

    Returns:
        The hook; ``uninstall()`` takes it back, ``report`` says how a shutdown went.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        ShutdownHookError: this is not the main thread, or one of the signals cannot be handled.
        ThreadStartError: no thread can be started that waits for them; none of them is handled.
    """
    if not all(callable(getattr(each, "close", None)) for each in closeables):
        raise InvalidArgumentError("closeables must have a method close().")
    arguments.optional_instance("pool", pool, ConnectionPool)
    timeout = arguments.seconds("timeout", timeout)
    numbers = _signal_numbers(signals)
    global _installed  # noqa: PLW0603  # signal handlers are the process's, and so is the hook
    if _installed is None or not _installed.is_installed:
        _installed = ShutdownHook(numbers, timeout)
    else:
        _installed.add_signals(numbers)
    _installed.add(closeables, default_pool() if pool is None else pool)
    return _installed
