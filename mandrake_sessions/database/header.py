"""What the first bytes of the file on disk say, past every cache: whether it is still ours."""

from __future__ import annotations

import time

import apsw

from mandrake_sessions.database.connection import MAGIC, Connection
from mandrake_sessions.schema import APPLICATION_ID

_LOOKS = 3
_PAUSE = 0.002


def strangeness(header: bytes, stamp: int) -> str | None:
    """Return why a file is not the database that was opened, or None.

    Args:
        header: its first 100 bytes, as they are on disk.
        stamp: of the database that was opened.
    """
    if header[:16] != MAGIC:
        return "the file is no SQLite database any more"
    if int.from_bytes(header[68:72], "big") not in (0, APPLICATION_ID):
        return "another program's database is there"
    # 0: the page that carries it has not been checkpointed into the file yet.
    if int.from_bytes(header[60:64], "big") not in (0, stamp):
        return "another database was copied over it"
    return None


def is_overwritten(connection: Connection, stamp: int) -> bool:
    """Return whether other bytes are in the place of our database, for certain.

    One look could meet another process's checkpoint half way; what cannot be read is not judged.

    Args:
        connection: whose lease the caller holds.
        stamp: of the database that was opened.
    """
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        try:
            if strangeness(connection.header(), stamp) is None:
                return False
        except apsw.Error:
            return False
    return True
