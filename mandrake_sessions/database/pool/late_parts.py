"""The parts of the engine of which few hosts need any: imported when they are first used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.error_codes import translate_os
from mandrake_sessions.late_imports import late_import


@block
def importing(path: Path) -> Iterator[None]:
    """Import a part inside the block; a fork of another thread waits for it.

    Args:
        path: of the database that it is needed for, for errors.

    Raises:
        TooManyFilesError: no descriptor is left to read the part.
        DatabaseError: another error of the system, which reads no module.
    """
    try:
        with late_import:
            yield
    except OSError as error:
        raise translate_os(error, path) from error
