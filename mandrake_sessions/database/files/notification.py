"""Tells followers that a file was perhaps written by another process.

On Linux one inotify descriptor watches the ``-wal`` of every followed database. Elsewhere, and
where the system has no watch left, their times are looked at: often while something happens, rarely
when not. Nothing here opens a database file: closing it would drop SQLite's locks (RULES 1).

One thread for the whole process, there only while something is watched.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from mandrake_sessions.concurrency.fork import after_fork
from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.database.sidecars import wal_of

_PACE: Final = 0.002
"""Seconds between two looks at what the system tells: a commit is many writes."""

_HEARTBEAT: Final = 1.0
"""Seconds between two looks at the files' times, whatever the system tells."""

_SHORTEST_POLL: Final = 0.01
_LONGEST_POLL: Final = 0.25

_IN_MODIFY: Final = 0x2
_IN_IGNORED: Final = 0x8000
_EVENT: Final = struct.Struct("iIII")

_OVERFLOW: Final = -1
"""The number of the event that says that others were lost."""

Stamp = tuple[int, ...]


class Inotify:
    """The one descriptor through which Linux tells of writes.

    Raises:
        OSError: the system has none, or none left.
    """

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError(errno.ENOSYS, "there is no inotify")
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            self.descriptor: int = self._checked(
                self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            )
        except AttributeError as error:
            raise OSError(errno.ENOSYS, "there is no inotify") from error
        self._poll = select.poll()
        self._poll.register(self.descriptor, select.POLLIN)

    def add(self, path: Path) -> int:
        """Begin to watch a file; return the number that its events carry."""
        return self._checked(
            self._libc.inotify_add_watch(self.descriptor, os.fsencode(path), _IN_MODIFY)
        )

    def remove(self, number: int) -> None:
        """Watch a file no more; it may be gone already."""
        self._libc.inotify_rm_watch(self.descriptor, number)

    def wait(self, timeout: float) -> tuple[set[int], set[int]]:
        """Return the numbers of the files that were written, and of those watched no more.

        ``_OVERFLOW`` among the first means that some were lost.
        """
        written: set[int] = set()
        gone: set[int] = set()
        if self._poll.poll(timeout * 1000):
            with contextlib.suppress(BlockingIOError):
                # A watch on a file, not a folder, has events without a name: all of one size.
                for number, mask, _, _ in _EVENT.iter_unpack(os.read(self.descriptor, 65536)):
                    (gone if mask & _IN_IGNORED else written).add(number)
        return written, gone

    def close(self) -> None:
        """Give the descriptor back."""
        with contextlib.suppress(OSError):
            os.close(self.descriptor)

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result


class _Watch:
    """One followed file.

    Attributes:
        number: what its events carry; None where its times must be polled.
        stamp: what its times and sizes were when they were last looked at.
    """

    def __init__(self, path: Path, tell: Callable[[], None]) -> None:
        self.path = path
        self.log = wal_of(path)
        self.tell = tell
        self.number: int | None = None
        self.stamp = self.look()

    def look(self) -> Stamp:
        """Return what changes with a write, or when the file is moved."""
        stamp: Stamp = ()
        for path in (self.log, self.path):
            try:
                found = os.stat(path)
            except OSError:
                stamp += (0,)
            else:
                stamp += (found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)
        return stamp


class Notifier:
    """Watches files for the followers of this process.

    Args:
        make_inotify: how the system's notification is reached; another one in tests.
    """

    def __init__(self, make_inotify: Callable[[], Inotify] = Inotify) -> None:
        self._make_inotify = make_inotify
        self._reset()

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        self._watches: dict[object, _Watch] = {}
        self._inotify: Inotify | None = None
        self._thread: threading.Thread | None = None
        self._changed = Gate()

    @property
    def is_polling(self) -> bool:
        """Whether the times of some file must be polled."""
        return any(watch.number is None for watch in tuple(self._watches.values()))

    def watch(self, key: object, path: Path, tell: Callable[[], None]) -> None:
        """Have ``tell`` called, in the notifier's thread, when a database was perhaps written.

        Args:
            key: for ``forget``.
            path: of the database.
            tell: must be quick and must not raise.

        Raises:
            ThreadStartError: no thread can be started that hears of writes.
        """
        watch = _Watch(path, tell)
        with self._mutex:
            if self._thread is None:
                # It looks for what to watch under this lock.
                thread = threading.Thread(target=self._run, name="mandrake-notifier", daemon=True)
                self._thread = thread
                try:
                    start(thread)
                except BaseException:
                    # After Ctrl-C it may run all the same, or not: it counts once it has begun.
                    if thread.ident is None:
                        self._thread = None
                    raise
            if self._inotify is None:
                with contextlib.suppress(OSError):
                    self._inotify = self._make_inotify()
            if self._inotify is not None:
                with contextlib.suppress(OSError):
                    watch.number = self._inotify.add(watch.log)
            self._watches[key] = watch
        self._changed.set()

    def forget(self, key: object) -> None:
        """Watch a database no more."""
        self._changed.set()
        with self._mutex:
            watch = self._watches.pop(key, None)
            if watch is None or watch.number is None or self._inotify is None:
                return
            # The same file may be watched for who has opened it anew already.
            if all(other.number != watch.number for other in self._watches.values()):
                # Its last event wakes the thread.
                self._inotify.remove(watch.number)

    def forget_after_fork(self) -> None:
        """Begin anew in a child; the descriptor is closed, which the parent does not notice."""
        if self._inotify is not None:
            self._inotify.close()
        self._reset()

    def _run(self) -> None:
        interval = _LONGEST_POLL
        beat_at = monotonic() + _HEARTBEAT
        while True:
            with self._mutex:
                if self._thread is not threading.current_thread():
                    return
                if not self._watches:
                    self._end()
                    return
                inotify = self._inotify
            is_polling = self.is_polling
            written = self._wait(inotify, interval if is_polling else _HEARTBEAT)
            now = monotonic()
            is_beat = now >= beat_at or _OVERFLOW in written
            told = self._numbered(written)
            if is_beat or is_polling:
                stamped = self._stamped(all_files=is_beat)
                told |= stamped
                interval = _SHORTEST_POLL if stamped else min(interval * 1.5, _LONGEST_POLL)
            if is_beat:
                beat_at = now + _HEARTBEAT
            for watch in told:
                watch.tell()
            if written:
                sleep(_PACE)

    def _wait(self, inotify: Inotify | None, timeout: float) -> set[int]:
        """Wait until the system tells of writes; return the numbers of the files."""
        if inotify is None:
            self._changed.wait(timeout)
            self._changed.clear()
            return set()
        written, gone = inotify.wait(timeout)
        if gone:
            with self._mutex:
                for watch in self._watches.values():
                    if watch.number in gone:
                        # The file was removed under the open database: its path is polled.
                        watch.number = None
        return written

    def _numbered(self, numbers: set[int]) -> set[_Watch]:
        if not numbers:
            return set()
        with self._mutex:
            return {watch for watch in self._watches.values() if watch.number in numbers}

    def _stamped(self, *, all_files: bool) -> set[_Watch]:
        """Return the files whose times are not what they were."""
        with self._mutex:
            watches = list(self._watches.values())
        changed = set()
        for watch in watches:
            if all_files or watch.number is None:
                stamp = watch.look()
                if stamp != watch.stamp:
                    watch.stamp = stamp
                    changed.add(watch)
        return changed

    def _end(self) -> None:
        """Let the thread go, under the lock; the next file starts another."""
        self._thread = None
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None


notifier: Notifier = Notifier()
"""The process's own."""

after_fork(notifier.forget_after_fork)
