"""A file system with injected faults: at the n-th write, at each sync, once or from then on.

The faults are in SQLite's calls to the disk, so everything above them is real:
``DatabaseOptions(vfs=…)`` takes the name of a ``FaultVFS``.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import apsw
import msgspec

from mandrake_sessions.errors import InvalidArgumentError

KINDS: Final = ("db", "wal", "journal", "other")
"""SQLite's kinds of files; ``other`` are its temporary ones."""

CODES: Final = {
    "open": apsw.SQLITE_CANTOPEN,
    "read": apsw.SQLITE_IOERR_READ,
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "size": apsw.SQLITE_IOERR_FSTAT,
    "lock": apsw.SQLITE_IOERR_LOCK,
    "delete": apsw.SQLITE_IOERR_DELETE,
}
"""The operations that can fail, and the extended result code each fails with by default."""

Look = Callable[[], apsw.Error | None]
"""Called at an operation, in the thread that requests it; a returned error is raised."""

_numbers = itertools.count(1)


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the disk fails, and how.

    Args:
        operation: ``open``, ``read``, ``write``, ``sync``, ``truncate``, ``size``, ``lock`` or
            ``delete``.
        nth: which of the matching operations fails, counted from 1 when the fault is injected.
        sticking: whether all later ones fail too.
        kind: ``db``, ``wal``, ``journal`` or ``other``; None for files of any kind.
        code: SQLite's extended result code; None for the operation's own, such as
            ``SQLITE_IOERR_WRITE``.
        written: which part of a failing write reaches the file all the same, from 0.0 to 1.0.
    """

    operation: str
    nth: int = 1
    sticking: bool = False
    kind: str | None = None
    code: int | None = None
    written: float = 0.0

    def __post_init__(self) -> None:
        _require(self.kind, self.operation)
        if self.nth < 1:
            raise InvalidArgumentError("nth counts from 1.")
        if not 0.0 <= self.written <= 1.0:
            raise InvalidArgumentError("written is a share, from 0.0 to 1.0.")


class Injection:
    """An injected fault, with its counts.

    Attributes:
        met: how many matching operations there were.
        struck: how many of them failed.
    """

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.met: int = 0
        self.struck: int = 0

    def _meet(self) -> apsw.Error | None:
        """Count a matching operation, under the file system's lock; return its error, if any."""
        self.met += 1
        fault = self.fault
        if self.met < fault.nth or (self.met > fault.nth and not fault.sticking):
            return None
        self.struck += 1
        return failure(CODES[fault.operation] if fault.code is None else fault.code)


class FaultVFS(apsw.VFS):
    """A file system with injected faults; otherwise it behaves like its base.

    It may be used by many threads and connections. Keep it as long as a file is open through it.

    Args:
        name: under which it is registered, for ``DatabaseOptions(vfs=…)``; None for a new one.
        base: the VFS below it; ``""`` for the default one.

    Attributes:
        name: under which it is registered.
        met: how often each operation was requested, by keys such as ``("wal", "sync")``.
    """

    def __init__(self, name: str | None = None, base: str = "") -> None:
        self.name: str = name or f"mandrake-fault-{next(_numbers)}"
        self.base = base
        self.met: dict[tuple[str, str], int] = {}
        self._mutex = threading.Lock()
        self._injections: list[Injection] = []
        self._looks: list[tuple[str, str, Look]] = []
        super().__init__(self.name, base)

    @contextmanager
    def injecting(self, fault: Fault) -> Iterator[Injection]:
        """Inject a fault for the duration of the block.

        Args:
            fault: where and how.

        Returns:
            The injection, which counts the failures.
        """
        injection = Injection(fault)
        with self._mutex:
            self._injections.append(injection)
        try:
            yield injection
        finally:
            with self._mutex:
                self._injections.remove(injection)

    @contextmanager
    def failing(self, kind: str, operation: str, code: int | None = None) -> Iterator[None]:
        """Make every such operation fail for the duration of the block.

        Args:
            kind: the kind of the files.
            operation: that fails.
            code: SQLite's extended result code; None for the operation's own, see ``CODES``.
        """
        with self.injecting(Fault(operation, kind=kind, code=code, sticking=True)):
            yield

    @contextmanager
    def watching(self, kind: str, operation: str, look: Look) -> Iterator[None]:
        """Call a function at each such operation for the duration of the block.

        Args:
            kind: the kind of the files.
            operation: the operation.
            look: called before the operation, in its thread, and perhaps in several at once. It
                may wait; it may return an error, such as ``failure(apsw.SQLITE_FULL)``.
        """
        _require(kind, operation)
        watched = (kind, operation, look)
        with self._mutex:
            self._looks.append(watched)
        try:
            yield
        finally:
            with self._mutex:
                self._looks.remove(watched)

    def _meet(
        self, kind: str, operation: str, write: Callable[[float], None] | None = None
    ) -> None:
        """Count an operation; raise if it is to fail.

        Args:
            kind: the kind of the file.
            operation: the requested one.
            write: writes the given share of a failing write.
        """
        torn = 0.0
        with self._mutex:
            self.met[kind, operation] = self.met.get((kind, operation), 0) + 1
            error = None
            for each in self._injections:
                fault = each.fault
                if fault.operation == operation and fault.kind in (None, kind):
                    found = each._meet()
                    if found is not None:
                        error, torn = found, fault.written
            looks = [look for *asked, look in self._looks if asked == [kind, operation]]
        for look in looks:
            error = look() or error
        if error is None:
            return
        if torn and write is not None:
            write(torn)
        raise error

    # -- called by SQLite -------------------------------------------------------------------

    def xOpen(  # noqa: N802  # SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        """Open a file that checks for faults before each operation."""
        kind = file_kind(flags[0])
        self._meet(kind, "open")
        return _FaultFile(self, kind, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802  # SQLite's name
        """Delete a file."""
        suffix = filename.rpartition("-")[2]
        self._meet(suffix if suffix in ("wal", "journal") else "db", "delete")
        super().xDelete(filename, syncdir)


class _FaultFile(apsw.VFSFile):
    """A file of the base with counted operations."""

    def __init__(
        self, vfs: FaultVFS, kind: str, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        super().__init__(vfs.base, name, flags)
        self._vfs = vfs
        self._kind = kind

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802  # SQLite's name
        self._vfs._meet(self._kind, "read")
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802  # SQLite's name
        write = super().xWrite

        def write_part(share: float) -> None:
            write(data[: int(len(data) * share)], offset)

        self._vfs._meet(self._kind, "write", write_part)
        write(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802  # SQLite's name
        self._vfs._meet(self._kind, "sync")
        super().xSync(flags)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802  # SQLite's name
        self._vfs._meet(self._kind, "truncate")
        super().xTruncate(newsize)

    def xFileSize(self) -> int:  # noqa: N802  # SQLite's name
        self._vfs._meet(self._kind, "size")
        return super().xFileSize()

    def xLock(self, level: int) -> None:  # noqa: N802  # SQLite's name
        self._vfs._meet(self._kind, "lock")
        super().xLock(level)


def failure(code: int) -> apsw.Error:
    """Return the error that gives SQLite an extended result code.

    Args:
        code: the code, such as ``apsw.SQLITE_IOERR_READ``.
    """
    error = apsw.exception_for(code)
    assert isinstance(error, apsw.Error)
    return error


def file_kind(flags: int) -> str:
    """Return SQLite's kind of a file, by the flags with which it is opened."""
    if flags & apsw.SQLITE_OPEN_MAIN_DB:
        return "db"
    if flags & apsw.SQLITE_OPEN_WAL:
        return "wal"
    if flags & (apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL):
        return "journal"
    return "other"


def _require(kind: str | None, operation: str) -> None:
    """Refuse a kind or operation that does not exist."""
    if kind is not None and kind not in KINDS:
        raise InvalidArgumentError(f"kind is one of {', '.join(KINDS)}, or None.")
    if operation not in CODES:
        raise InvalidArgumentError(f"operation is one of {', '.join(CODES)}.")
