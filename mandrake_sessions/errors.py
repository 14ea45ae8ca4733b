"""Every exception of the library.

::

    MandrakeSessionsError
    ├── InvalidArgumentError (also ValueError)
    ├── NotInitializedError
    ├── ReentrantScopeError
    ├── NotFoundError
    │   ├── SessionNotFoundError · RoundNotFoundError · RequestNotFoundError
    │   └── ResponseNotFoundError · TurnNotFoundError · WorkspaceNotFoundError
    ├── AlreadyExistsError
    │   ├── SessionAlreadyExistsError · RoundAlreadyExistsError · RequestAlreadyExistsError
    │   └── ResponseAlreadyExistsError · TurnAlreadyExistsError · WorkspaceAlreadyExistsError
    ├── StaleRevisionError
    ├── TurnFinishedError
    ├── TurnInterruptedError · TurnBeingWrittenError
    ├── StreamBackpressureError
    ├── ImportSourceError
    ├── ShutdownHookError
    ├── ThreadStartError
    └── DatabaseError                 path · operation · result_code · attempts
        ├── DatabaseOpenError
        │   ├── DatabaseFolderError · DatabaseMissingError · TooManyFilesError
        │   ├── DatabasePathError
        │   │   └── DatabaseNamesError kind · others
        │   ├── StaleLogError · LostLogError log
        │   ├── NotADatabaseError · UnrecognizedDatabaseError · WorkspacePlaceError
        │   └── UnsupportedSQLiteError · OptionsConflictError
        ├── MigrationError
        │   └── SchemaTooNewError
        ├── DatabaseBusyError         phase · waited · phases
        ├── ReadOnlyDatabaseError
        ├── StorageFullError          free_bytes
        ├── CorruptDatabaseError
        ├── DatabaseIOError · NoMemoryError
        ├── DatabaseMovedError
        ├── StatementError
        │   └── ConstraintViolationError
        ├── TransactionLostError
        ├── CommitOutcomeUnknownError result
        ├── BackupError · RestoreError · SalvageError
        └── HandleReleasedError · PoolClosedError · ForkedPoolError

The first line of a class's docstring is its message, unless a call gives a more exact one. ``python
-OO`` removes docstrings, so ``make sql`` copies these lines to ``error_messages``. Facts on which a
program decides are attributes. No error carries the value of a parameter, which may be a user's
text; of an id, errors show the first characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mandrake_sessions.error_messages import MESSAGES
from mandrake_sessions.ids import MAX_ID_LENGTH


class MandrakeSessionsError(Exception):
    """Something in mandrake_sessions failed."""

    default_message: ClassVar[str] = MESSAGES["MandrakeSessionsError"]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Of this class only: the docstring of a base class would be too general. A host's own class
        # is not among the messages; under -OO its name is all there is.
        own = cls.__dict__.get("__doc__") or MESSAGES.get(cls.__name__) or cls.__name__
        cls.default_message = own.split("\n\n")[0]

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.default_message)

    @property
    def message(self) -> str:
        """The message without the context."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors are copied for other threads and sent between processes, with any arguments.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    kind: type[MandrakeSessionsError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> MandrakeSessionsError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


def _named(error: MandrakeSessionsError, id: str) -> str:
    """Return the subject of an error, such as ``session with the id 'x'``."""
    # The class's name has the entity: RoundNotFoundError, TurnAlreadyExistsError.
    name = type(error).__name__.removesuffix("Error")
    entity = name.removesuffix("NotFound").removesuffix("AlreadyExists").lower() or "row"
    # No row has a longer id. A caller may have passed a text as an id by mistake.
    shown = id if len(id) <= MAX_ID_LENGTH else f"{id[:MAX_ID_LENGTH]}…"
    return f"{entity} with the id {shown!r}"


class InvalidArgumentError(MandrakeSessionsError, ValueError):
    """An argument has the wrong type or is out of range; nothing was written."""


class NotInitializedError(MandrakeSessionsError):
    """The manager is not open: call init() or use it as a context manager."""


class ReentrantScopeError(MandrakeSessionsError):
    """This thread already works on this database; pass the open transaction on instead."""


class NotFoundError(MandrakeSessionsError):
    """There is no such row.

    Attributes:
        id: the id of the query; None if the query was not by id.
    """

    def __init__(self, id: str | None = None, message: str | None = None) -> None:
        self.id = id
        super().__init__(message or (id and f"There is no {_named(self, id)}."))


class SessionNotFoundError(NotFoundError):
    """There is no such session."""


class RoundNotFoundError(NotFoundError):
    """There is no such round."""


class RequestNotFoundError(NotFoundError):
    """There is no such request."""


class ResponseNotFoundError(NotFoundError):
    """There is no such response."""


class TurnNotFoundError(NotFoundError):
    """There is no such turn."""


class WorkspaceNotFoundError(NotFoundError):
    """There is no such workspace."""


class AlreadyExistsError(MandrakeSessionsError):
    """The id, name or path is taken.

    Attributes:
        id: the id of the existing row, if it is known.
    """

    def __init__(self, id: str | None = None, message: str | None = None) -> None:
        self.id = id
        super().__init__(message or (id and f"There is already a {_named(self, id)}."))


class SessionAlreadyExistsError(AlreadyExistsError):
    """The id of the session is taken."""


class RoundAlreadyExistsError(AlreadyExistsError):
    """The id of the round is taken."""


class RequestAlreadyExistsError(AlreadyExistsError):
    """The id of the request is taken."""


class ResponseAlreadyExistsError(AlreadyExistsError):
    """The id of the response is taken."""


class TurnAlreadyExistsError(AlreadyExistsError):
    """The id or index of the turn is taken."""


class WorkspaceAlreadyExistsError(AlreadyExistsError):
    """The name or path of the workspace is taken."""


class StaleRevisionError(MandrakeSessionsError):
    """The row or conversation has changed: it is not at the expected revision or index.

    Attributes:
        expected: the revision or index that the caller gave.
        actual: the present one.
    """

    def __init__(self, *, expected: int, actual: int, message: str | None = None) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(
            message or f"The row or conversation has changed: expected {expected}, found {actual}."
        )


class TurnFinishedError(MandrakeSessionsError):
    """The turn has ended: it takes nothing more, and never goes back to streaming."""


class TurnInterruptedError(MandrakeSessionsError):
    """Another caller ended the turn while it was being written; its text is kept."""


class TurnBeingWrittenError(MandrakeSessionsError):
    """A TurnWriter is writing the text of this turn; only its status and other fields change."""


class StreamBackpressureError(MandrakeSessionsError):
    """The stream holds max_buffered_bytes that are not stored yet; the text was not taken."""


class ImportSourceError(MandrakeSessionsError):
    """The source cannot be imported: it is not the expected kind, or it is in use."""


class ShutdownHookError(MandrakeSessionsError):
    """The shutdown hook cannot be installed here: signal handlers belong to the main thread."""


class ThreadStartError(MandrakeSessionsError):
    """No thread can be started now: raise the limit of threads or memory, or end some, and retry.

    Nothing was stored, and nothing is half done.
    """


class DatabaseError(MandrakeSessionsError):
    """A database operation failed.

    Attributes:
        path: the database file.
        operation: the call that failed, such as ``create_round`` or ``open``.
        result_code: SQLite's extended result code, if SQLite returned one.
        attempts: how often it was tried.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        path: str | Path | None = None,
        operation: str | None = None,
        result_code: int | None = None,
        attempts: int = 1,
    ) -> None:
        self.path: Path | None = Path(path) if isinstance(path, str) else path
        self.operation = operation
        self.result_code = result_code
        self.attempts = attempts
        super().__init__(message)

    def __str__(self) -> str:
        context = {
            "path": self.path,
            "operation": self.operation,
            "result_code": self.result_code,
            "attempts": self.attempts if self.attempts > 1 else None,
        }
        shown = ", ".join(f"{name}={value}" for name, value in context.items() if value is not None)
        return f"{self.message} ({shown})" if shown else self.message


class DatabaseOpenError(DatabaseError):
    """The database could not be opened."""


class DatabaseFolderError(DatabaseOpenError):
    """The folder of the database cannot be made or written."""


class DatabasePathError(DatabaseOpenError):
    """The path cannot name a database file."""


class DatabaseMissingError(DatabaseOpenError):
    """There is no database file at this path."""


class DatabaseNamesError(DatabasePathError):
    """The file has another name, to which its WAL belongs; nothing was changed.

    Attributes:
        kind: ``hard link``, ``mounted file`` (the file is a mount point, as in a container that
            mounts a file instead of its folder), ``other mount`` (a process has it open through
            another mount of its folder) or ``interrupted restore`` (which has renamed the WAL).
        others: the other names, as far as they were found.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        kind: str = "hard link",
        others: tuple[Path, ...] = (),
        **context: Any,
    ) -> None:
        self.kind = kind
        self.others = others
        super().__init__(message, **context)


class TooManyFilesError(DatabaseOpenError):
    """This process may open no further file: close some, or raise its limit (ulimit -n)."""


class NotADatabaseError(DatabaseOpenError):
    """The file is not a SQLite database; it was left as it is."""


class UnrecognizedDatabaseError(DatabaseOpenError):
    """The file is a SQLite database of another program; it was left as it is."""


class WorkspacePlaceError(DatabaseOpenError):
    """The workspace is not what was registered; nothing was read, written or removed."""


class StaleLogError(DatabaseOpenError):
    """The WAL at the database belongs to another file; nothing was changed: move that WAL away.

    Attributes:
        log: the path of that WAL.
    """

    log: Path | None = None


class LostLogError(DatabaseOpenError):
    """The database is empty: its contents were in a WAL that is missing.

    Attributes:
        log: where that WAL should be.
    """

    log: Path | None = None


class UnsupportedSQLiteError(DatabaseOpenError):
    """This SQLite can lose committed data (WAL-reset bug); install apsw 3.51.3 or newer."""


class OptionsConflictError(DatabaseOpenError):
    """The database is open with other options than the requested ones."""


class MigrationError(DatabaseError):
    """The schema could not be brought to the requested revision; nothing was changed."""


class SchemaTooNewError(MigrationError):
    """The database was written by a newer version of mandrake_sessions; upgrade the package."""


class DatabaseBusyError(DatabaseError):
    """The database stayed busy until the deadline; raise busy_timeout or find who holds it.

    Attributes:
        phase: where the deadline passed: ``queue`` (other threads of this process), ``begin``
            (another process holds the write lock), ``body`` (the work itself) or ``open``.
        waited: seconds in all.
        phases: seconds by phase.
        holder_pid: the process that the call was waiting for when it gave up, if the system shows
            it; this process's own id if another connection here held the database; else None.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        phase: str = "begin",
        waited: float = 0.0,
        phases: Mapping[str, float] | None = None,
        holder_pid: int | None = None,
        **context: Any,
    ) -> None:
        self.phase = phase
        self.holder_pid = holder_pid
        self.waited = waited
        self.phases: dict[str, float] = dict(phases or {phase: waited})
        super().__init__(message, **context)

    def __str__(self) -> str:
        spent = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in self.phases.items())
        return f"{super().__str__()} [waited {self.waited:.3f} s: {spent}]"


class ReadOnlyDatabaseError(DatabaseError):
    """The database file cannot be written."""


class StorageFullError(DatabaseError):
    """The disk is full; the transaction was undone, earlier commits stand, reading goes on.

    Attributes:
        free_bytes: the free space of the file system after the failure, if it could be read.
    """

    free_bytes: int | None = None


class CorruptDatabaseError(DatabaseError):
    """The database file is damaged; writing is refused and nothing is repaired by itself."""


class DatabaseIOError(DatabaseError):
    """The operating system failed to read or write the database file."""


class NoMemoryError(DatabaseError):
    """There was no memory for the call; nothing of it was stored."""


class DatabaseMovedError(DatabaseError):
    """The file under the open database was moved, replaced or deleted; close and open it again."""


class StatementError(DatabaseError):
    """SQLite refused a statement."""


class ConstraintViolationError(StatementError):
    """A row would break a constraint of the schema.

    Attributes:
        columns: the columns of the constraint, such as ``("rounds.id",)``; never a value.
        position: the position, from 0, of the failing statement in a call that runs several; None
            for a call that runs one.
    """

    position: int | None = None

    def __init__(
        self, message: str | None = None, *, columns: tuple[str, ...] = (), **context: Any
    ) -> None:
        self.columns = columns
        super().__init__(message, **context)


class TransactionLostError(DatabaseError):
    """SQLite ended the transaction; nothing of this unit was stored, and it may be tried again."""


class CommitOutcomeUnknownError(DatabaseError):
    """The COMMIT failed in a way that may have stored the data: look the ids up before a replay.

    Attributes:
        result: what the call would have returned, with the ids for the query; None if the
            transaction was a block of the caller.
    """

    result: object = None


class BackupError(DatabaseError):
    """The backup could not be made; the target was left as it was."""


class RestoreError(DatabaseError):
    """The backup could not be restored; the database was left as it was."""


class SalvageError(DatabaseError):
    """The salvaged copy could not be made; nothing was left of it."""


class HandleReleasedError(DatabaseError):
    """The handle was released; acquire a new one."""


class PoolClosedError(DatabaseError):
    """The pool is closed or closing and takes no new work."""


class ForkedPoolError(DatabaseError):
    """It was opened before a fork: close() and init() the manager, or acquire() a new handle."""
