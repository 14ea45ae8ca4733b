"""Checks every open database of a pool periodically, heals some problems, and reports.

Healing: a file that was moved or replaced is retired, and the next acquire opens the present one;
lost settings are restored; a long WAL is copied into the file; a file without space or permission
takes no writes until it has them; a damaged file takes no more writes.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Self

import apsw

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.fork import after_fork, current_pid
from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.concurrency.resources import Resource
from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.settings import restore_settings
from mandrake_sessions.database.health.levels import check_health
from mandrake_sessions.database.open_file.displacement import FileCondition
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.pool.pool import ConnectionPool
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.engine.health import HealthLevel, HealthReport, HealthStatus, level_of
from mandrake_sessions.errors import (
    DatabaseError,
    ForkedPoolError,
    InvalidArgumentError,
    PoolClosedError,
    ReadOnlyDatabaseError,
)
from mandrake_sessions.log import get_logger

OnReport = Callable[[HealthReport], object]
"""Called with each report, in the monitor's thread; an error that it raises is logged."""

_HEAL_SECONDS = 1.0
_STOP_SECONDS = 10.0


class HealthMonitor(Resource):
    """A thread that checks the databases of a pool.

    It ends with the pool, and can be used as a context manager. A forked child has no such thread.

    Args:
        pool: the pool whose open databases are checked.
        interval: seconds between two rounds at the level ``QUICK``.
        thorough_interval: seconds between two rounds at the level ``THOROUGH``; None for none.
        on_report: called with each report.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        interval: float = 60.0,
        thorough_interval: float | None = None,
        on_report: OnReport | None = None,
    ) -> None:
        super().__init__()
        if not arguments.is_one(pool, ConnectionPool):
            raise InvalidArgumentError("pool must be a ConnectionPool.")
        self._pool = pool
        self._interval = _interval("interval", interval)
        self._thorough_interval = (
            None if thorough_interval is None else _interval("thorough_interval", thorough_interval)
        )
        if on_report is not None and not callable(on_report):
            raise InvalidArgumentError("on_report must be callable.")
        self._on_report = on_report
        self._reset()
        _living.add(self)

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        # Rounds of the thread and of ``look`` exclude each other.
        self._rounds = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = Gate()
        self._last: dict[Path, dict[str, HealthStatus]] = {}

    def start(self) -> Self:
        """Start the thread, if it does not run; the first round begins at once.

        Raises:
            PoolClosedError: the pool is closed.
            ThreadStartError: the system has no thread left; it may be started again later.
        """
        if self._pool.is_closed:
            raise PoolClosedError(operation="monitor")
        with self._mutex:
            if self._thread is None or not self._thread.is_alive():
                self._stop = Gate()
                self._pool._wake_when_closed(self._stop)
                thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="mandrake-health", daemon=True
                )
                # First: after Ctrl-C the thread may run nevertheless.
                self._thread = thread
                start(thread)
        return self

    def stop(self) -> None:
        """End the thread; it may be called again.

        A check of all pages is interrupted. The call waits up to ten seconds for other checks and
        for ``on_report``.
        """
        with self._mutex:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None and thread is not threading.current_thread():
            # A thread that could not be started, or was interrupted before, raises RuntimeError.
            with contextlib.suppress(RuntimeError):
                thread.join(_STOP_SECONDS)

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def look(self, level: HealthLevel = HealthLevel.QUICK) -> tuple[HealthReport, ...]:
        """Run one round in this thread: check, heal and report; return the reports.

        Args:
            level: the checks to run.

        Raises:
            InvalidArgumentError: ``level`` is none of the levels.
            PoolClosedError: the pool is closed.
        """
        return self._round(level_of(level), Gate())

    def _round(self, level: HealthLevel, stop: Gate) -> tuple[HealthReport, ...]:
        reports = []
        files = self._pool._open_files()
        with self._rounds:
            for file in files:
                if stop.is_set():
                    break
                try:
                    report = check_health(file, level, stop=stop)
                    if stop.is_set() and level is HealthLevel.THOROUGH:
                        # The check was interrupted, which shows nothing about the file.
                        break
                    self._log_changes(report)
                    heal(file, report)
                except (PoolClosedError, ForkedPoolError):
                    # The file is closing, or was parked.
                    continue
                except Exception:  # noqa: BLE001  # one file must not end the checks of all
                    get_logger(__name__).exception("health_monitor_failed", path=str(file.path))
                    continue
                reports.append(report)
            open_now = {file.path for file in files}
            self._last = {path: last for path, last in self._last.items() if path in open_now}
        for report in reports:
            self._notify(report)
        return tuple(reports)

    def _log_changes(self, report: HealthReport) -> None:
        last = self._last.setdefault(report.path, {})
        for check in report.checks:
            before = last.get(check.name, HealthStatus.OK)
            last[check.name] = check.status
            if check.status is not before:
                fields = {
                    "path": str(report.path),
                    "check": check.name,
                    "before": str(before),
                    "after": str(check.status),
                    "detail": check.detail,
                }
                if check.status is HealthStatus.OK:
                    get_logger(__name__).info("health_changed", **fields)
                else:
                    get_logger(__name__).warning("health_changed", **fields)

    def _notify(self, report: HealthReport) -> None:
        if self._on_report is not None:
            try:
                self._on_report(report)
            except Exception:  # noqa: BLE001  # an error of the host; the rounds go on
                get_logger(__name__).exception("health_report_failed", path=str(report.path))

    def _run(self, stop: Gate) -> None:
        pid = current_pid()
        thorough_at = self._next_thorough()
        while not stop.is_set() and pid == current_pid():
            is_thorough = monotonic() >= thorough_at
            if is_thorough:
                thorough_at = self._next_thorough()
            try:
                self._round(HealthLevel.THOROUGH if is_thorough else HealthLevel.QUICK, stop)
            except PoolClosedError:
                return
            except Exception:  # noqa: BLE001  # the thread lives as long as the pool
                get_logger(__name__).exception("health_monitor_failed")
            stop.wait(max(0.0, min(self._interval, thorough_at - monotonic())))

    def _next_thorough(self) -> float:
        if self._thorough_interval is None:
            return float("inf")
        return monotonic() + self._thorough_interval

    def _on_enter(self) -> Self:
        return self.start()

    def _on_left(self) -> None:
        self.stop()


def _interval(name: str, value: object) -> float:
    seconds = arguments.seconds(name, value)
    if seconds == 0:
        raise InvalidArgumentError(f"{name} must be more than 0 seconds.")
    return seconds


# -- healing --------------------------------------------------------------------------------------


def heal(file: DatabaseFile, report: HealthReport) -> None:
    """Heal the problems of a report that need no person.

    Args:
        file: the checked file.
        report: of the file.
    """
    wrong = {check.name: check for check in report.checks if check.status is not HealthStatus.OK}
    failed = {name for name, check in wrong.items() if check.status is HealthStatus.FAILED}
    condition = _condition_of(failed)
    if condition is not None:
        _retire(file, condition)
        return
    for name in ("settings", "settings_auxiliary"):
        if name in failed:
            _restore(file, auxiliary=name == "settings_auxiliary")
    file.refusal.refresh()
    if "writing" in failed and file.refusal.reason is None:
        # ``note`` checks the file system again, and refuses writes only to a read-only file.
        file.refusal.note(ReadOnlyDatabaseError(path=file.path, operation="write"))
    if "checkpoints" in wrong:
        _checkpoint(file)


def _condition_of(failed: set[str]) -> FileCondition | None:
    """Return the condition for which a file must be retired, None if there is none."""
    conditions = {
        "file": FileCondition.MOVED,
        "header": FileCondition.OVERWRITTEN,
        "log": FileCondition.LOG_LOST,
        "locks": FileCondition.LOCKS_LOST,
    }
    return next((condition for name, condition in conditions.items() if name in failed), None)


def _retire(file: DatabaseFile, condition: FileCondition) -> None:
    """Check the file once more, and retire it: a single check may fall into a change."""
    if condition is FileCondition.LOCKS_LOST:
        file.retire_as(condition)
        return
    with (
        contextlib.suppress(DatabaseError),
        file.probing("health", FileBudget(_HEAL_SECONDS)) as lent,
    ):
        file.may_checkpoint(lent, FileBudget(_HEAL_SECONDS))


def _restore(file: DatabaseFile, *, auxiliary: bool) -> None:
    lease = file.exclusive_auxiliary if auxiliary else file.probing
    with (
        contextlib.suppress(DatabaseError),
        lease("health", FileBudget(_HEAL_SECONDS)) as connection,
    ):
        restored = _set_again(connection, file, auxiliary=auxiliary)
        if restored:
            get_logger(__name__).warning(
                "settings_restored", path=str(file.path), settings=restored
            )


def _set_again(connection: Connection, file: DatabaseFile, *, auxiliary: bool) -> list[str]:
    try:
        return restore_settings(connection, file.options, auxiliary=auxiliary)
    except apsw.Error:
        # The next round reports the problem, and tries again.
        return []


def _checkpoint(file: DatabaseFile) -> None:
    before = file.checkpointer.backlog
    file.checkpoint()
    after = file.checkpointer.backlog
    if after < before:
        get_logger(__name__).info(
            "backlog_checkpointed", path=str(file.path), before=before, after=after
        )


_living: weakref.WeakSet[HealthMonitor] = weakref.WeakSet()


def _in_child() -> None:
    for monitor in tuple(_living):
        monitor._reset()


after_fork(_in_child)
