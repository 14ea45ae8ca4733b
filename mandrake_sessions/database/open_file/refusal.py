"""Why an open file takes no writes: damage, for good; no space or no permission, until it passes.

Reading goes on in each case. What passes is looked at again by every write that is refused, and
once a second one is let through: a log that begins anew needs no space.
"""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from time import monotonic

from mandrake_sessions.database.error_codes import free_bytes
from mandrake_sessions.database.files.paths import may_write
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseError,
    NotADatabaseError,
    ReadOnlyDatabaseError,
    StorageFullError,
)
from mandrake_sessions.log import get_logger

_ENOUGH = 1024 * 1024
"""Free bytes above which a full disk is full no more."""
_TRY_EVERY = 1.0


class Refusal:
    """Decides whether an open file may be written, from the faults it has met.

    Args:
        path: the real path of the file.
        is_read_only: whether it was opened to be read only.

    Attributes:
        damage: the first sign that the file is corrupt; it stays.
        obstacle: why writes are refused for now.
    """

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        self.damage: DatabaseError | None = None
        self.obstacle: StorageFullError | ReadOnlyDatabaseError | None = None
        self._path = path
        self._is_read_only = is_read_only
        self._try_at = 0.0
        self._mutex = threading.Lock()

    @property
    def reason(self) -> DatabaseError | None:
        """What a write is refused with this moment."""
        return self.damage or self.obstacle

    def require_writable(self) -> None:
        """Let a write go on, or raise why it cannot.

        Raises:
            CorruptDatabaseError: the file is damaged, or is no database any more.
            StorageFullError: the disk is still full.
            ReadOnlyDatabaseError: the file still cannot be written, or was opened with
                ``read_only``.
        """
        if self._is_read_only:
            raise ReadOnlyDatabaseError(
                "The database was opened with read_only: nothing is written.", path=self._path
            )
        if self.damage is not None:
            raise copy.copy(self.damage)
        obstacle = self.obstacle
        if obstacle is not None and not self._may_try(obstacle):
            raise copy.copy(obstacle)

    def note(self, error: DatabaseError) -> None:
        """Take note of a fault that was met, if it says something of the writes to come."""
        if error.path != self._path:
            # A host's work may use other databases too.
            return
        if isinstance(error, CorruptDatabaseError | NotADatabaseError):
            self._latch(error)
        elif isinstance(error, StorageFullError | ReadOnlyDatabaseError):
            self._refuse(error)

    def note_success(self) -> None:
        """Take note of a COMMIT: whatever was in the way is not there any more."""
        with self._mutex:
            before, self.obstacle = self.obstacle, None
        if before is not None:
            get_logger(__name__).info(
                "writes_resumed", path=str(self._path), error=type(before).__name__
            )

    def look(self) -> None:
        """Take writes again if nothing is in their way any more."""
        obstacle = self.obstacle
        if obstacle is not None and not self._is_there(obstacle):
            self.note_success()

    def _latch(self, error: DatabaseError) -> None:
        with self._mutex:
            if self.damage is not None:
                return
            self.damage = copy.copy(error)
        get_logger(__name__).error(
            "database_corrupt", path=str(self._path), result_code=error.result_code
        )

    def _refuse(self, error: StorageFullError | ReadOnlyDatabaseError) -> None:
        # A quota, or a fault of one write alone: each write finds out by itself.
        if not self._is_there(error):
            return
        with self._mutex:
            is_new = self.obstacle is None
            self.obstacle = copy.copy(error)
            self._try_at = monotonic() + _TRY_EVERY
        if is_new:
            get_logger(__name__).error(
                "writes_refused", path=str(self._path), error=type(error).__name__
            )

    def _may_try(self, obstacle: StorageFullError | ReadOnlyDatabaseError) -> bool:
        if not self._is_there(obstacle):
            return True
        # The descriptor that is open could still write a file that must not be written.
        if isinstance(obstacle, ReadOnlyDatabaseError):
            return False
        with self._mutex:
            now = monotonic()
            if now < self._try_at:
                return False
            self._try_at = now + _TRY_EVERY
            return True

    def _is_there(self, obstacle: StorageFullError | ReadOnlyDatabaseError) -> bool:
        """Look, in about two microseconds, whether an obstacle is in the way."""
        if isinstance(obstacle, ReadOnlyDatabaseError):
            return not may_write(self._path)
        free = free_bytes(self._path)
        return free is not None and free < _ENOUGH
