"""Notifies followers that another process may have written a file.

On Linux one inotify descriptor watches the ``-wal`` of every followed database. Elsewhere, and
where the system has no watch left, the thread polls the times of the files: often after changes,
rarely without. It opens no database file, because closing one would drop SQLite's locks.

One thread serves the whole process; it runs only while a file is watched.
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
from mandrake_sessions.concurrency.threads import has_begun, start_or_undo
from mandrake_sessions.database.sidecars import wal_of

_PACE: Final = 0.002
"""Seconds between two readings of events: a commit is many writes."""

_HEARTBEAT: Final = 1.0
"""Seconds between two polls of the files' times, also where the system reports writes."""

_SHORTEST_POLL: Final = 0.01
_LONGEST_POLL: Final = 0.25

_IN_MODIFY: Final = 0x2
_IN_IGNORED: Final = 0x8000
_EVENT: Final = struct.Struct("iIII")

_OVERFLOW: Final = -1
"""The number of the event for lost events."""

FileTimes = tuple[int, ...]


class Inotify:
    """The one descriptor through which Linux reports writes.

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
        """Start to watch a file; return the number that its events carry."""
        return self._checked(
            self._libc.inotify_add_watch(self.descriptor, os.fsencode(path), _IN_MODIFY)
        )

    def remove(self, number: int) -> None:
        """Stop to watch a file, which may be gone already."""
        self._libc.inotify_rm_watch(self.descriptor, number)

    def wait(self, timeout: float) -> tuple[set[int], set[int]]:
        """Return the numbers of the files that were written, and of those no longer watched.

        ``_OVERFLOW`` among the first means that events were lost.
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
        """Close the descriptor."""
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
        times: its times and sizes when they were last read.
    """

    def __init__(self, path: Path, notify: Callable[[], None]) -> None:
        self.path = path
        self.wal = wal_of(path)
        self.notify = notify
        self.number: int | None = None
        self.times = self.present_times()

    def present_times(self) -> FileTimes:
        """Return times, sizes and identities, of which one changes with a write or a move."""
        times: FileTimes = ()
        for path in (self.wal, self.path):
            try:
                found = os.stat(path)
            except OSError:
                times += (0,)
            else:
                times += (found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)
        return times


class Notifier:
    """Watches files for the followers of this process.

    Args:
        make_inotify: makes the system's notification; tests give another one.
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

    def watch(self, key: object, path: Path, notify: Callable[[], None]) -> None:
        """Let the notifier's thread call ``notify`` when a database may have been written.

        Args:
            key: for ``forget``.
            path: the path of the database.
            notify: must be quick and must not raise.

        Raises:
            ThreadStartError: the notifier's thread cannot be started.
        """
        watch = _Watch(path, notify)
        with self._mutex:
            if not has_begun(self._thread):
                # The thread reads the watches under this lock.
                thread = threading.Thread(target=self._run, name="mandrake-notifier", daemon=True)
                self._thread = thread
                start_or_undo(thread, self._forget_thread)
            if self._inotify is None:
                with contextlib.suppress(OSError):
                    self._inotify = self._make_inotify()
            if self._inotify is not None:
                with contextlib.suppress(OSError):
                    watch.number = self._inotify.add(watch.wal)
            self._watches[key] = watch
        self._changed.set()

    def _forget_thread(self) -> None:
        self._thread = None

    def forget(self, key: object) -> None:
        """Stop to watch a database."""
        self._changed.set()
        with self._mutex:
            watch = self._watches.pop(key, None)
            if watch is None or watch.number is None or self._inotify is None:
                return
            # A follower that has opened the file anew may watch it already.
            if all(other.number != watch.number for other in self._watches.values()):
                # Its last event wakes the thread.
                self._inotify.remove(watch.number)

    def forget_after_fork(self) -> None:
        """Begin anew in a child; closing the descriptor does not affect the parent."""
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
            changed = self._numbered(written)
            if is_beat or is_polling:
                polled = self._polled(all_files=is_beat)
                changed |= polled
                interval = _SHORTEST_POLL if polled else min(interval * 1.5, _LONGEST_POLL)
            if is_beat:
                beat_at = now + _HEARTBEAT
            for watch in changed:
                watch.notify()
            if written:
                sleep(_PACE)

    def _wait(self, inotify: Inotify | None, timeout: float) -> set[int]:
        """Wait until the system reports writes; return the numbers of the files."""
        if inotify is None:
            self._changed.wait(timeout)
            self._changed.clear()
            return set()
        written, gone = inotify.wait(timeout)
        if gone:
            with self._mutex:
                for watch in self._watches.values():
                    if watch.number in gone:
                        # The file was removed from the open database: its path is polled.
                        watch.number = None
        return written

    def _numbered(self, numbers: set[int]) -> set[_Watch]:
        if not numbers:
            return set()
        with self._mutex:
            return {watch for watch in self._watches.values() if watch.number in numbers}

    def _polled(self, *, all_files: bool) -> set[_Watch]:
        """Return the files whose times have changed."""
        with self._mutex:
            watches = list(self._watches.values())
        changed = set()
        for watch in watches:
            if all_files or watch.number is None:
                times = watch.present_times()
                if times != watch.times:
                    watch.times = times
                    changed.add(watch)
        return changed

    def _end(self) -> None:
        """Let the thread end, under the lock; the next file starts another one."""
        self._thread = None
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None


notifier: Notifier = Notifier()
"""The notifier of this process."""

after_fork(notifier.forget_after_fork)
