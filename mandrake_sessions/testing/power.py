"""A file system whose power can be cut at any moment, without stopping the programs on it.

It records every write and sync. The content of the disk after a cut is computed from the record
afterwards, so one run gives thousands of cuts.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import apsw

from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.testing.disk import (
    Disk,
    Event,
    FolderSynced,
    Named,
    Noted,
    Resized,
    Synced,
    Written,
)
from mandrake_sessions.testing.faults import file_kind

_numbers = itertools.count(1)


class PowerCut:
    """The content of the disk after a power cut at one moment.

    Attributes:
        at: the number of events before the cut.
        notes: the values noted before it, in their order.
        during: the last event before it: a file and an operation, such as ``wal write``.
        files: the contents of the existing files, by their path.
    """

    def __init__(
        self, at: int, notes: tuple[object, ...], during: str, files: dict[Path, bytes]
    ) -> None:
        self.at = at
        self.notes = notes
        self.during = during
        self.files = files

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the files into a folder, each under its own name, without its path.

        The index of the WAL, ``-shm``, is left out: SQLite makes a new one.

        Args:
            folder: the target; it is made if it is missing.

        Raises:
            InvalidArgumentError: two of the files have the same name.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        if len({path.name for path in self.files}) < len(self.files):
            raise InvalidArgumentError("Two of the files have the same name.")
        for path, content in self.files.items():
            (target / path.name).write_bytes(content)


class PowerLossVFS(apsw.VFS):
    """A file system that records the content of the disk at each moment.

    No call waits for a disk: a sync only separates what a cut takes from what it leaves. All writes
    are kept in memory, so a run may write some hundred megabytes. It records SQLite's calls, and
    does not see files renamed or removed by other means.

    Args:
        name: under which it is registered, for ``DatabaseOptions(vfs=…)``; None for a new one.
        base: the VFS below it; ``""`` for the default one.

    Attributes:
        name: under which it is registered.
    """

    def __init__(self, name: str | None = None, base: str = "") -> None:
        self.name: str = name or f"mandrake-power-{next(_numbers)}"
        self.base = base
        self._events: list[Event] = []
        self._mutex = threading.Lock()
        self._open: dict[str, tuple[int, tuple[int, int]]] = {}
        self._kinds: list[str] = []
        super().__init__(self.name, base)

    @property
    def position(self) -> int:
        """How many events there were until now; a cut is made after any of them."""
        return len(self._events)

    def note(self, value: object) -> None:
        """Note a value at this moment; a cut has the values noted before it.

        Args:
            value: such as the id of a row, after the call that stored it has returned.
        """
        self._events.append(Noted(value))

    def cuts(self, count: int, *, seed: int = 0, since: int = 0) -> Iterator[PowerCut]:
        """Yield cuts at random moments, in the order of time.

        Args:
            count: how many.
            seed: the same one gives the same cuts of the same record.
            since: the ``position`` before which no cut is made.
        """
        random = Random(seed)
        now = self.position
        moments = sorted(random.randint(since, now) for _ in range(count))
        return self._cuts(moments, random)

    def cut(self, *, seed: int = 0) -> PowerCut:
        """Return a cut at this moment; the seed decides which unsynced writes it keeps.

        Args:
            seed: of the random choice of unsynced writes.
        """
        return next(self._cuts([self.position], Random(seed)))

    def death(self) -> PowerCut:
        """Return what the death of the process at this moment leaves: everything it has written."""
        return next(self._cuts([self.position], None))

    def _cuts(self, moments: list[int], random: Random | None) -> Iterator[PowerCut]:
        disk = Disk()
        done = 0
        for at in moments:
            for index in range(done, at):
                disk.follow(index, self._events[index])
            done = at
            files = {Path(path): data for path, data in disk.survivors(random).items()}
            yield PowerCut(at, tuple(disk.notes), self._during(at), files)

    def _during(self, at: int) -> str:
        """Return the last event of a file, as text."""
        for index in range(at - 1, -1, -1):
            match self._events[index]:
                case Written(file=file):
                    return f"{self._kinds[file]} write"
                case Resized(file=file):
                    return f"{self._kinds[file]} truncate"
                case Synced(file=file):
                    return f"{self._kinds[file]} sync"
        return ""

    # -- called by SQLite -------------------------------------------------------------------

    def xOpen(  # noqa: N802  # SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        """Open a file whose changes are recorded; temporary ones are not."""
        kind = file_kind(flags[0])
        if name is None or kind == "other":
            return apsw.VFSFile(self.base, name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        with self._mutex:
            was_there = os.path.exists(path)
            if kind == "db" and path not in self._open:
                self._find_wals(path)
            file = _RecordedFile(self, name, flags)
            file.number = self._number(path, kind, file, was_there=was_there)
        if kind != "db" and flags[0] & apsw.SQLITE_OPEN_CREATE:
            # SQLite syncs the folder with the first sync of a WAL or journal.
            file.folder = os.path.dirname(path)
        return file

    def _find_wals(self, path: str) -> None:
        """Record the WAL and journal next to a database: SQLite may be kept from opening them."""
        for kind, flag in (
            ("wal", apsw.SQLITE_OPEN_WAL),
            ("journal", apsw.SQLITE_OPEN_MAIN_JOURNAL),
        ):
            sidecar = f"{path}-{kind}"
            if os.path.exists(sidecar) and sidecar not in self._open:
                file = _RecordedFile(self, sidecar, [apsw.SQLITE_OPEN_READONLY | flag, 0])
                self._number(sidecar, kind, file, was_there=True)
                file.xClose()

    def _number(self, path: str, kind: str, file: _RecordedFile, *, was_there: bool) -> int:
        """Return the number of a file that is opened; a new one unless it is the known file."""
        found = os.stat(path)
        identity = found.st_dev, found.st_ino
        known = self._open.get(path)
        if known is not None and known[1] == identity and was_there:
            return known[0]
        number = len(self._kinds)
        self._kinds.append(kind)
        self._open[path] = number, identity
        content = file.whole()
        # An empty file was just made, and its name is not on the disk yet.
        self._events.append(Named(path, number, content, is_found=bool(content)))
        return number

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802  # SQLite's name
        """Delete a file."""
        with self._mutex:
            super().xDelete(filename, syncdir)
            self._open.pop(filename, None)
            self._events.append(Named(filename, None))
            if syncdir:
                self._record(FolderSynced(os.path.dirname(filename), self.position))

    def _record(self, event: Event) -> None:
        """Add an event; called in the thread that changes the file."""
        self._events.append(event)


class _RecordedFile(apsw.VFSFile):
    """A file of the base whose changes are recorded."""

    def __init__(self, vfs: PowerLossVFS, name: str | apsw.URIFilename, flags: list[int]) -> None:
        super().__init__(vfs.base, name, flags)
        self._vfs = vfs
        self.number = -1
        self.folder: str | None = None

    def whole(self) -> bytes:
        """Return the content of the file."""
        size = super().xFileSize()
        return super().xRead(size, 0) if size else b""

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802  # SQLite's name
        self._vfs._record(Written(self.number, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802  # SQLite's name
        self._vfs._record(Resized(self.number, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802, ARG002  # SQLite's name and arguments
        position = self._vfs.position
        self._vfs._record(Synced(self.number, position))
        if self.folder is not None:
            self._vfs._record(FolderSynced(self.folder, position))
            self.folder = None
