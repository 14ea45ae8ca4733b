"""The messages of errors, for ``python -OO``. Made by ``make sql`` from ``errors.py``."""

# fmt: off

MESSAGES: dict[str, str] = {
    "MandrakeSessionsError": "Something in mandrake_sessions failed.",
    "InvalidArgumentError": (
        "An argument has the wrong type or is out of range; nothing was written."
    ),
    "NotInitializedError": "The manager is not open: call init() or use it as a context manager.",
    "ReentrantScopeError": (
        "This thread already works on this database; pass the open transaction on "
        "instead."
    ),
    "NotFoundError": "There is no such row.",
    "SessionNotFoundError": "There is no such session.",
    "RoundNotFoundError": "There is no such round.",
    "RequestNotFoundError": "There is no such request.",
    "ResponseNotFoundError": "There is no such response.",
    "TurnNotFoundError": "There is no such turn.",
    "WorkspaceNotFoundError": "There is no such workspace.",
    "AlreadyExistsError": "The id, name or path is taken.",
    "SessionAlreadyExistsError": "The id of the session is taken.",
    "RoundAlreadyExistsError": "The id of the round is taken.",
    "RequestAlreadyExistsError": "The id of the request is taken.",
    "ResponseAlreadyExistsError": "The id of the response is taken.",
    "TurnAlreadyExistsError": "The id or index of the turn is taken.",
    "WorkspaceAlreadyExistsError": "The name or path of the workspace is taken.",
    "StaleRevisionError": (
        "The row or conversation has changed: it is not at the expected revision or "
        "index."
    ),
    "TurnFinishedError": (
        "The turn has ended: it takes nothing more, and never goes back to streaming."
    ),
    "TurnInterruptedError": (
        "Another caller ended the turn while it was being written; its text is kept."
    ),
    "TurnBeingWrittenError": (
        "A TurnWriter is writing the text of this turn; only its status and other fields "
        "change."
    ),
    "StreamBackpressureError": (
        "The stream holds max_buffered_bytes that are not stored yet; the text was not "
        "taken."
    ),
    "ImportSourceError": (
        "The source cannot be imported: it is not the expected kind, or it is in use."
    ),
    "ShutdownHookError": (
        "The shutdown hook cannot be installed here: signal handlers belong to the main "
        "thread."
    ),
    "ThreadStartError": (
        "No thread can be started now: raise the limit of threads or memory, or end "
        "some, and retry."
    ),
    "DatabaseError": "A database operation failed.",
    "DatabaseOpenError": "The database could not be opened.",
    "DatabaseFolderError": "The folder of the database cannot be made or written.",
    "DatabasePathError": "The path cannot name a database file.",
    "DatabaseMissingError": "There is no database file at this path.",
    "DatabaseNamesError": (
        "The file has another name, to which its WAL belongs; nothing was changed."
    ),
    "TooManyFilesError": (
        "This process may open no further file: close some, or raise its limit (ulimit "
        "-n)."
    ),
    "NotADatabaseError": "The file is not a SQLite database; it was left as it is.",
    "UnrecognizedDatabaseError": (
        "The file is a SQLite database of another program; it was left as it is."
    ),
    "WorkspacePlaceError": (
        "The workspace is not what was registered; nothing was read, written or removed."
    ),
    "StaleLogError": (
        "The WAL at the database belongs to another file; nothing was changed: move that "
        "WAL away."
    ),
    "LostLogError": "The database is empty: its contents were in a WAL that is missing.",
    "UnsupportedSQLiteError": (
        "This SQLite can lose committed data (WAL-reset bug); install apsw 3.51.3 or "
        "newer."
    ),
    "OptionsConflictError": "The database is open with other options than the requested ones.",
    "MigrationError": (
        "The schema could not be brought to the requested revision; nothing was changed."
    ),
    "SchemaTooNewError": (
        "The database was written by a newer version of mandrake_sessions; upgrade the "
        "package."
    ),
    "DatabaseBusyError": (
        "The database stayed busy until the deadline; raise busy_timeout or find who "
        "holds it."
    ),
    "ReadOnlyDatabaseError": "The database file cannot be written.",
    "StorageFullError": (
        "The disk is full; the transaction was undone, earlier commits stand, reading "
        "goes on."
    ),
    "CorruptDatabaseError": (
        "The database file is damaged; writing is refused and nothing is repaired by "
        "itself."
    ),
    "DatabaseIOError": "The operating system failed to read or write the database file.",
    "NoMemoryError": "There was no memory for the call; nothing of it was stored.",
    "DatabaseMovedError": (
        "The file under the open database was moved, replaced or deleted; close and open "
        "it again."
    ),
    "StatementError": "SQLite refused a statement.",
    "ConstraintViolationError": "A row would break a constraint of the schema.",
    "TransactionLostError": (
        "SQLite ended the transaction; nothing of this unit was stored, and it may be "
        "tried again."
    ),
    "CommitOutcomeUnknownError": (
        "The COMMIT failed in a way that may have stored the data: look the ids up "
        "before a replay."
    ),
    "BackupError": "The backup could not be made; the target was left as it was.",
    "RestoreError": "The backup could not be restored; the database was left as it was.",
    "SalvageError": "The salvaged copy could not be made; nothing was left of it.",
    "HandleReleasedError": "The handle was released; acquire a new one.",
    "PoolClosedError": "The pool is closed or closing and takes no new work.",
    "ForkedPoolError": (
        "It was opened before a fork: close() and init() the manager, or acquire() a new "
        "handle."
    ),
}
