"""The exit codes of commands, and what a user can do about an error."""

from __future__ import annotations

import contextlib
import enum
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Final

from mandrake_sessions import errors


class ExitCode(enum.IntEnum):
    """How a command ended; scripts may rely on these."""

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        """Make a code with its meaning."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    meaning: str

    OK = 0, "done"
    FAILED = 1, "it failed, or was declined"
    USAGE = 2, "wrong arguments, a missing --yes, or the extra 'cli' is not installed"
    NOT_FOUND = 3, "no such session, workspace, database or file"
    BUSY = 4, "the database stayed busy until the deadline"
    UNUSABLE = 5, "damaged, no database of this library, newer schema, not writable, disk full"
    EXISTS = 6, "the name, path or file is taken"
    INTERRUPTED = 130, "SIGINT (Ctrl-C)"
    BROKEN_PIPE = 141, "the reader of the output went away"


EXIT_CODES: Final = "; ".join(f"{code.value} {code.meaning}" for code in ExitCode)
"""All codes in a sentence, for ``--help``."""


class CommandError(Exception):
    """A command cannot do what was requested; for requests that the library would not refuse."""

    def __init__(self, message: str, code: ExitCode, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint

    @property
    def type(self) -> str:
        """Its name for scripts, such as ``UsageError`` or ``NotFoundError``."""
        return f"{self.code.name.title().replace('_', '')}Error"


class AdvisedError(Exception):
    """An error with what a user can do about it in this command; ``error`` decides the rest."""

    def __init__(self, error: Exception, hint: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.hint = hint


@contextlib.contextmanager
def advising(hints: Mapping[type[Exception], str]) -> Iterator[None]:
    """Give the errors of a block other hints than the usual ones, which name other options."""
    try:
        yield
    except tuple(hints) as error:
        hint = next(hint for kind, hint in hints.items() if isinstance(error, kind))
        raise AdvisedError(error, hint) from error


# SQLite's primary error codes for a damaged or foreign file: CORRUPT, CONSTRAINT, NOTADB.
_UNSOUND: Final = {11, 19, 26}
# Advice for programs only; a user has --timeout and --allow-other-names.
_FOR_PROGRAMS: Final = (
    "; raise busy_timeout or find who holds it",
    " DatabaseOptions(allow_other_names=True) opens it nevertheless.",
)
_OF_FILE: Final = re.compile(r"(mandrake-sessions (?:doctor|salvage)) FILE")
"""The place in a hint for the file of the error."""
_RESCUE: Final = (
    "`mandrake-sessions doctor FILE` says what is wrong, `mandrake-sessions salvage FILE NEW` "
    "reads what is left."
)

# The first match counts, so a class stands before its base class.
_MEANINGS: Final[tuple[tuple[type[BaseException], ExitCode, str], ...]] = (
    (errors.InvalidArgumentError, ExitCode.USAGE, "See --help."),
    (
        errors.WorkspaceNotFoundError,
        ExitCode.NOT_FOUND,
        "`mandrake-sessions workspaces list` shows those there are.",
    ),
    (
        errors.SessionNotFoundError,
        ExitCode.NOT_FOUND,
        "`mandrake-sessions sessions list` shows those there are.",
    ),
    (errors.NotFoundError, ExitCode.NOT_FOUND, ""),
    (
        errors.DatabaseMissingError,
        ExitCode.NOT_FOUND,
        (
            "Check --root, --workspace and --database; of a workspace whose directory was moved, "
            "`workspaces move NAME DIR` names the new place, `restore` brings a lost file back, "
            "`workspaces unregister NAME` takes the entry out."
        ),
    ),
    (
        errors.WorkspacePlaceError,
        ExitCode.UNUSABLE,
        "The commands are `workspaces move NAME DIR` and `workspaces unregister NAME`.",
    ),
    (
        errors.WorkspaceAlreadyExistsError,
        ExitCode.EXISTS,
        "Choose another name or path; `workspaces adopt` takes conversations that are there.",
    ),
    (errors.AlreadyExistsError, ExitCode.EXISTS, ""),
    (
        errors.DatabaseBusyError,
        ExitCode.BUSY,
        "Another program holds it: try again, or wait longer with --timeout.",
    ),
    (
        errors.SchemaTooNewError,
        ExitCode.UNUSABLE,
        "pip install --upgrade mandrake-sessions",
    ),
    (errors.MigrationError, ExitCode.UNUSABLE, ""),
    (
        errors.CorruptDatabaseError,
        ExitCode.UNUSABLE,
        "`mandrake-sessions doctor FILE` says what to do; keep the file and its -wal until then.",
    ),
    (
        errors.NotADatabaseError,
        ExitCode.UNUSABLE,
        "If it was one, its beginning is damaged: `mandrake-sessions doctor FILE` says what to do.",
    ),
    (
        errors.UnrecognizedDatabaseError,
        ExitCode.UNUSABLE,
        "`import` reads databases of the original system, everything else those of this one.",
    ),
    (errors.StaleLogError, ExitCode.UNUSABLE, ""),
    (errors.LostLogError, ExitCode.UNUSABLE, ""),
    (errors.DatabaseFolderError, ExitCode.UNUSABLE, "Check the folder and its permissions."),
    (
        errors.DatabaseNamesError,
        ExitCode.UNUSABLE,
        (
            "`mandrake-sessions doctor FILE` names the other one where it lies in the same folder; "
            "`mandrake-sessions --allow-other-names COMMAND` opens it all the same."
        ),
    ),
    (errors.DatabasePathError, ExitCode.USAGE, ""),
    (errors.ReadOnlyDatabaseError, ExitCode.UNUSABLE, "Check the permissions of the file."),
    (errors.StorageFullError, ExitCode.UNUSABLE, "Free some space and try again."),
    (
        errors.ImportSourceError,
        ExitCode.UNUSABLE,
        "Nothing was imported; FILE must be a database of the original system.",
    ),
    (errors.RestoreError, ExitCode.FAILED, "The database is as it was."),
    (errors.DatabaseOpenError, ExitCode.UNUSABLE, ""),
    (errors.DatabaseIOError, ExitCode.UNUSABLE, "Check the disk."),
    (errors.DatabaseMovedError, ExitCode.UNUSABLE, "Try again."),
    (errors.CommitOutcomeUnknownError, ExitCode.FAILED, "Check first whether it was stored."),
    (errors.MandrakeSessionsError, ExitCode.FAILED, ""),
    (FileNotFoundError, ExitCode.NOT_FOUND, ""),
    (FileExistsError, ExitCode.EXISTS, ""),
    (OSError, ExitCode.FAILED, ""),
)


class Failure:
    """An error as users and scripts get it.

    Attributes:
        type: the name of its class, or of its kind.
        message: the message, on one line.
        hint: the advice, on one line, or empty.
        code: the exit code.
    """

    def __init__(self, error: BaseException) -> None:
        # Of several, as closing may raise, the first; the others are in the log.
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        hint = None
        if isinstance(error, AdvisedError):
            hint = error.hint
            error = error.error
        self.type: str = error.type if isinstance(error, CommandError) else type(error).__name__
        message = str(error)
        if isinstance(error, errors.MigrationError) and error.__cause__ is not None:
            # Only Alembic's message names the unknown revision, or the step that failed.
            message = f"{message}: {str(error.__cause__).partition(chr(10))[0]}"
        if isinstance(error, errors.DatabaseBusyError | errors.DatabaseNamesError):
            for each in _FOR_PROGRAMS:
                message = message.replace(each, "")
        self.message: str = " ".join(message.split()) or self.type
        self.code: ExitCode
        self.hint: str
        self.code, self.hint = _meaning(error)
        if hint is not None:
            self.hint = hint
        path = getattr(error, "path", None)
        if path is not None:
            self.hint = _OF_FILE.sub(
                lambda found: f"{found[1]} {shlex.quote(str(path))}", self.hint
            )

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def document(self) -> dict[str, object]:
        """Return it for ``--json``."""
        return {
            "error": {
                "type": self.type,
                "message": self.message,
                "hint": self.hint,
                "exit_code": int(self.code),
            }
        }


def _meaning(error: BaseException) -> tuple[ExitCode, str]:
    if isinstance(error, CommandError):
        return error.code, error.hint
    if isinstance(error, errors.SalvageError) and error.result_code in _UNSOUND:
        return ExitCode.UNUSABLE, "No file was made; `import` reads the original system's."
    if isinstance(error, errors.BackupError | errors.RestoreError):
        if (error.result_code or 0) & 0xFF in _UNSOUND:
            return ExitCode.UNUSABLE, _RESCUE
        if isinstance(error.__cause__, errors.StorageFullError | errors.DatabaseFolderError):
            return _meaning(error.__cause__)
    for kind, code, hint in _MEANINGS:
        if isinstance(error, kind):
            return code, hint
    return ExitCode.FAILED, "This is a bug: MANDRAKE_TRACEBACK=1 shows where."
