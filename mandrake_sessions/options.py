"""The choices of a host about databases and the pool; every limit has its name here."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TypeVar

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.errors import InvalidArgumentError

T = TypeVar("T")


def _taken(options: msgspec.Struct, name: str, check: Callable[[str, object], T]) -> T:
    """Check a field, replace it by the plain value that the check returns, and return that."""
    given: object = getattr(options, name)
    value = check(name, given)
    if value is not given:
        msgspec.structs.force_setattr(options, name, value)
    return value


def _require_count(options: msgspec.Struct, *names: str) -> None:
    for name in names:
        if _taken(options, name, arguments.count) == 0:
            raise InvalidArgumentError(f"{name} must be at least 1.")


class Durability(enum.Enum):
    """The events that an acknowledged write survives. Each survives the death of the process.

    In simulated power cuts ``DURABLE`` lost none of 413 acknowledged commits, ``FAST`` lost the
    newest ones in 120 of 377 runs, without corruption.
    """

    DURABLE = "durable"
    """Survives a power cut: SQLite's ``synchronous=FULL``, one fsync for each COMMIT."""
    FAST = "fast"
    """A power cut may take the newest commits: ``synchronous=NORMAL``."""


class DatabaseOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one database file is opened and used. Times are in seconds.

    Args:
        durability: the events that an acknowledged write survives.
        busy_timeout: the budget of one call: the queue, BEGIN and the body together.
        group_max_units: how many units may share one COMMIT.
        group_max_seconds: how long a shared transaction may collect units before it commits.
        checkpoint_frames: WAL frames (4 KiB each) above which a passive checkpoint is made; four
            times as many if a checkpoint takes more than a millisecond.
        wal_limit_bytes: size of the ``-wal`` file above which it is truncated. Once writers have
            written as much again during a checkpoint, each call waits 0.1 s until it has ended.
        cache_bytes: page cache of each connection.
        flush_interval: how long text of a streaming turn may stay in memory before it is stored.
        flush_bytes: bytes of a streaming turn that are stored at once, before the interval is over.
        max_buffered_bytes: bytes of a streaming turn that may wait to be stored; more are refused.
        allow_other_names: whether to open a file that has another name as well: a hard link, a
            file that is mounted by itself, a folder that is mounted twice. The host must ensure
            that one name is used at a time, and that its last user has closed the file.
        vfs: the name of a registered SQLite VFS other than the default one, for fault injection.
        read_only: whether the file is only read. Then it is not made or migrated, no turn is ended,
            and every write is refused; a file, folder or medium without write access suffices.
            every write is refused; a file, folder or medium that cannot be written is enough.
    """

    durability: Durability = Durability.DURABLE
    busy_timeout: float = 30.0
    group_max_units: int = 64
    group_max_seconds: float = 0.010
    checkpoint_frames: int = 1000
    wal_limit_bytes: int = 64 * 1024 * 1024
    cache_bytes: int = 8 * 1024 * 1024
    flush_interval: float = 0.05
    flush_bytes: int = 16 * 1024
    max_buffered_bytes: int = 8 * 1024 * 1024
    allow_other_names: bool = False
    vfs: str | None = None
    read_only: bool = False

    def __post_init__(self) -> None:
        if not arguments.is_one(self.durability, Durability):
            raise InvalidArgumentError("durability must be a Durability.")
        _taken(self, "busy_timeout", arguments.seconds)
        _taken(self, "group_max_seconds", arguments.seconds)
        if _taken(self, "flush_interval", arguments.seconds) == 0:
            raise InvalidArgumentError("flush_interval must be more than 0 seconds.")
        _require_count(
            self,
            "group_max_units",
            "checkpoint_frames",
            "wal_limit_bytes",
            "cache_bytes",
            "flush_bytes",
            "max_buffered_bytes",
        )
        arguments.flag("allow_other_names", self.allow_other_names)
        if _taken(self, "vfs", arguments.optional_text) == "":
            raise InvalidArgumentError("vfs must be the name of a VFS.")
        arguments.flag("read_only", self.read_only)


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a pool manages its databases. Times are in seconds.

    Args:
        database: the options of a database that is acquired without its own.
        linger: how long a file stays open after its last handle was released, so that a close
            and an open in quick succession (of this process or another) do not meet.
        max_idle: how many files without a handle may stay open; above it the oldest are closed.
        max_open: how many files may be open at all. Above it the files without a handle are closed,
            then the least recently used ones without work, stream or watcher: their handles stay
            valid, and the next call opens the file again. Files in use stay open, whatever their
            number. The process's limit of descriptors may allow less: at seven a file, with a
            quarter of them left to the host, 1,024 make 109 files.
        close_timeout: how long ``close()`` waits for work under way before it interrupts it.
    """

    database: DatabaseOptions = DatabaseOptions()
    linger: float = 1.0
    max_idle: int = 32
    max_open: int = 256
    close_timeout: float = 10.0

    def __post_init__(self) -> None:
        if not arguments.is_one(self.database, DatabaseOptions):
            raise InvalidArgumentError("database must be DatabaseOptions.")
        _taken(self, "linger", arguments.seconds)
        _taken(self, "close_timeout", arguments.seconds)
        _taken(self, "max_idle", arguments.count)
        _require_count(self, "max_open")
