"""Refuses writes to an open file: permanently for damage, temporarily without space or permission.

Reads continue in each case. Every refused write checks a temporary obstacle again, and once a
second one write is tried nevertheless, because a WAL that restarts needs no space.
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
"""Free bytes from which a disk no longer counts as full."""
_TRY_EVERY = 1.0


class Refusal:
    """Decides whether an open file may be written, from the errors that were met.

    Args:
        path: the real path of the file.
        is_read_only: whether the file was opened with ``read_only``.

    Attributes:
        damage: the first error that shows that the file is corrupt; it stays.
        obstacle: the error with which writes are refused at present.
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
        """The error with which a write is refused at present, None if it is not."""
        return self.damage or self.obstacle

    def require_writable(self) -> None:
        """Raise an error if the file may not be written.

        Raises:
            CorruptDatabaseError: the file is damaged, or is no longer a database.
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
        """Record an error, if later writes would meet it too."""
        if error.path != self._path:
            # A unit of a host may use other databases too.
            return
        if isinstance(error, CorruptDatabaseError | NotADatabaseError):
            self._latch(error)
        elif isinstance(error, StorageFullError | ReadOnlyDatabaseError):
            self._refuse(error)

    def note_success(self) -> None:
        """Record a COMMIT: the obstacle is gone."""
        with self._mutex:
            before, self.obstacle = self.obstacle, None
        if before is not None:
            get_logger(__name__).info(
                "writes_resumed", path=str(self._path), error=type(before).__name__
            )

    def refresh(self) -> None:
        """Accept writes again if the obstacle is gone."""
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
        # A quota, or an error of a single write: each write has to be tried.
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
        # The open descriptor could still write a file that this user must not write.
        if isinstance(obstacle, ReadOnlyDatabaseError):
            return False
        with self._mutex:
            now = monotonic()
            if now < self._try_at:
                return False
            self._try_at = now + _TRY_EVERY
            return True

    def _is_there(self, obstacle: StorageFullError | ReadOnlyDatabaseError) -> bool:
        """Return whether an obstacle exists; takes about two microseconds."""
        if isinstance(obstacle, ReadOnlyDatabaseError):
            return not may_write(self._path)
        free = free_bytes(self._path)
        return free is not None and free < _ENOUGH
