"""The settings of a connection: pragmas and switches, set, read back, and restored when lost."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import apsw

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.errors import DatabaseOpenError
from mandrake_sessions.options import DatabaseOptions, Durability

if TYPE_CHECKING:
    from mandrake_sessions.database.connection.connection import Connection

_SYNCHRONOUS = {Durability.FAST: 1, Durability.DURABLE: 2}
_JOURNAL_SIZE_LIMIT = 64 * 1024 * 1024

_FROM_THE_BEGINNING = {"synchronous": 2, "query_only": 0}
"""The defaults of a new connection; a wanted default is only read, not set."""

_ANSWERING = {"wal_autocheckpoint", "journal_size_limit", "mmap_size"}
"""The pragmas that return their new value when they are set."""

_SETTINGS = {
    "foreign_keys": (apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 1),
    "double_quoted_strings": (apsw.SQLITE_DBCONFIG_DQS_DML, 0),
    "double_quoted_strings_in_ddl": (apsw.SQLITE_DBCONFIG_DQS_DDL, 0),
    "trusted_schema": (apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),
}
"""Settings without a statement: name, SQLite's switch, the required value."""


def pragmas(options: DatabaseOptions, *, auxiliary: bool) -> dict[str, int]:
    """Return the pragmas a connection must have."""
    return {
        "synchronous": _SYNCHRONOUS[options.durability],
        # SQLite reports a failed automatic WAL checkpoint as an error of the COMMIT (in 33 of 95
        # trials with injected faults).
        "wal_autocheckpoint": 0,
        # SQLite truncates the WAL to this size when it restarts the WAL.
        "journal_size_limit": min(_JOURNAL_SIZE_LIMIT, options.wal_limit_bytes),
        "mmap_size": 0,
        # In memory: to undo an append, a savepoint keeps more than 64 KiB, and making a file for it
        # took as long as the append (docs/adr/0005).
        "temp_store": 2,
        "cache_size": -(options.cache_bytes // 1024),
        "query_only": int(auxiliary or options.read_only),
    }


def apply_settings(
    connection: Connection, options: DatabaseOptions, *, auxiliary: bool
) -> list[str]:
    """Set the settings of a new connection; return the names of those that it did not accept."""
    # One call for all takes half the time of one call for each; these follow only if the results
    # of the one call differ from the wanted ones.
    text, answers = _all_settings(options, auxiliary=auxiliary)
    lost = []
    if connection.query_all(text) != answers:
        lost = _set_pragmas(connection, pragmas(options, auxiliary=auxiliary))
    return lost + [
        name
        for name, (setting, wanted) in _SETTINGS.items()
        if connection.raw.config(setting, wanted) != wanted
    ]


def _set_pragmas(connection: Connection, all_wanted: dict[str, int]) -> list[str]:
    """Set the pragmas of a new connection; return the names of those that it did not accept."""
    return [
        name
        for name, wanted in all_wanted.items()
        if _set_pragma(connection, name, wanted) != wanted
    ]


@functools.lru_cache(maxsize=8)
def _all_settings(options: DatabaseOptions, *, auxiliary: bool) -> tuple[str, list[tuple[int]]]:
    """Return the statements that set all pragmas, and the rows that they return."""
    wanted = pragmas(options, auxiliary=auxiliary)
    text = "".join([_setting(name, each) for name, each in wanted.items()])
    return text, [(each,) for each in wanted.values()]


def _setting(name: str, wanted: int) -> str:
    """Return the statements that set a pragma and return its new value in one row."""
    if _FROM_THE_BEGINNING.get(name) == wanted:
        return f"PRAGMA {name};"
    if name in _ANSWERING:
        return f"PRAGMA {name}={wanted};"
    return f"PRAGMA {name}={wanted};PRAGMA {name};"


def _set_pragma(connection: Connection, name: str, wanted: int) -> int:
    """Set a pragma and return its new value."""
    if _FROM_THE_BEGINNING.get(name) == wanted and connection.value(f"PRAGMA {name}") == wanted:
        return wanted
    answered = connection.value(f"PRAGMA {name}={wanted}")
    if answered is None:
        answered = connection.value(f"PRAGMA {name}")
    # On a file system that cannot map files, mmap_size returns no row.
    return int(answered or 0)


def lost_settings(
    connection: Connection, options: DatabaseOptions, *, auxiliary: bool
) -> list[str]:
    """Return the names of the settings that differ from the required ones."""
    lost = [
        name
        for name, wanted in pragmas(options, auxiliary=auxiliary).items()
        if int(connection.value(f"PRAGMA {name}") or 0) != wanted
    ]
    return lost + [
        name
        for name, (setting, wanted) in _SETTINGS.items()
        if connection.raw.config(setting, -1) != wanted
    ]


def restore_settings(
    connection: Connection, options: DatabaseOptions, *, auxiliary: bool
) -> list[str]:
    """Restore the settings that a connection has lost; return the names of the restored ones."""
    lost = lost_settings(connection, options, auxiliary=auxiliary)
    wanted = pragmas(options, auxiliary=auxiliary)
    for name in lost:
        if name in wanted:
            _set_pragma(connection, name, wanted[name])
        else:
            connection.raw.config(*_SETTINGS[name])
    still = lost_settings(connection, options, auxiliary=auxiliary)
    return [name for name in lost if name not in still]


@block
def foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Switch foreign keys off around a migration.

    Inside a transaction the pragma does nothing, and with it on, rebuilding ``sessions`` deleted
    every round by cascade.
    """
    switch = apsw.SQLITE_DBCONFIG_ENABLE_FKEY
    connection.raw.config(switch, 0)
    try:
        yield
    finally:
        if connection.raw.config(switch, 1) != 1:
            raise DatabaseOpenError("Foreign keys cannot be switched on.", path=connection.path)
