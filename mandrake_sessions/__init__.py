"""The store for agent hosts' conversations: one SQLite file per workspace.

>>> from mandrake_sessions import MandrakeManager

See ``SessionManager`` for one database, ``MandrakeManager`` for a system with workspaces.
"""

from typing import TYPE_CHECKING

from mandrake_sessions.database.pool.handle import DatabaseHandle
from mandrake_sessions.database.pool.pool import ConnectionPool, default_pool
from mandrake_sessions.engine.health import HealthCheck, HealthLevel, HealthReport, HealthStatus
from mandrake_sessions.engine.stats import DatabaseStats, PoolStats
from mandrake_sessions.errors import (
    AlreadyExistsError,
    BackupError,
    CommitOutcomeUnknownError,
    ConstraintViolationError,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseFolderError,
    DatabaseIOError,
    DatabaseMissingError,
    DatabaseMovedError,
    DatabaseNamesError,
    DatabaseOpenError,
    DatabasePathError,
    ForkedPoolError,
    HandleReleasedError,
    ImportSourceError,
    InvalidArgumentError,
    LostLogError,
    MandrakeSessionsError,
    MigrationError,
    NoMemoryError,
    NotADatabaseError,
    NotFoundError,
    NotInitializedError,
    OptionsConflictError,
    PoolClosedError,
    ReadOnlyDatabaseError,
    ReentrantScopeError,
    RequestAlreadyExistsError,
    RequestNotFoundError,
    ResponseAlreadyExistsError,
    ResponseNotFoundError,
    RestoreError,
    RoundAlreadyExistsError,
    RoundNotFoundError,
    SalvageError,
    SchemaTooNewError,
    SessionAlreadyExistsError,
    SessionNotFoundError,
    ShutdownHookError,
    StaleLogError,
    StaleRevisionError,
    StatementError,
    StorageFullError,
    StreamBackpressureError,
    ThreadStartError,
    TooManyFilesError,
    TransactionLostError,
    TurnAlreadyExistsError,
    TurnBeingWrittenError,
    TurnFinishedError,
    TurnInterruptedError,
    TurnNotFoundError,
    UnrecognizedDatabaseError,
    UnsupportedSQLiteError,
    WorkspaceAlreadyExistsError,
    WorkspaceNotFoundError,
    WorkspacePlaceError,
)
from mandrake_sessions.hosts import MandrakeManager
from mandrake_sessions.json_text.values import Storable, storable
from mandrake_sessions.json_text.writer import ValueChange
from mandrake_sessions.late_imports import late_names
from mandrake_sessions.live.streaming.tool_calls import PendingToolCall
from mandrake_sessions.live.streaming.writer import TurnWriter
from mandrake_sessions.live.watching.subscription import Subscription, Watch
from mandrake_sessions.live.watching.updates import (
    RoundUpdate,
    SessionEvent,
    SessionUpdate,
    TurnUpdate,
)
from mandrake_sessions.manager import SessionManager
from mandrake_sessions.models import (
    UNSET,
    Exchange,
    NewTurn,
    Request,
    Response,
    Round,
    Session,
    SessionHistory,
    SessionUsage,
    StreamingStatus,
    ToolCall,
    Turn,
    TurnStatus,
    Unset,
    Workspace,
)
from mandrake_sessions.options import DatabaseOptions, Durability, PoolOptions
from mandrake_sessions.session_transaction import SessionTransaction
from mandrake_sessions.workspace import WorkspaceManager

# What a host uses seldom, or only once it runs, takes no time of its start (docs/adr/0021).
if TYPE_CHECKING:
    from mandrake_sessions.database.pool.monitor import HealthMonitor
    from mandrake_sessions.rescue.diagnosis import diagnose
    from mandrake_sessions.rescue.report import SalvageReport, TableSalvage
    from mandrake_sessions.rescue.salvage import salvage
    from mandrake_sessions.shutdown import (
        Closeable,
        ShutdownHook,
        ShutdownReport,
        install_shutdown_hook,
    )
else:
    __getattr__ = late_names(
        globals(),
        {
            "HealthMonitor": "mandrake_sessions.database.pool.monitor",
            "Closeable": "mandrake_sessions.shutdown",
            "ShutdownHook": "mandrake_sessions.shutdown",
            "ShutdownReport": "mandrake_sessions.shutdown",
            "install_shutdown_hook": "mandrake_sessions.shutdown",
            "SalvageReport": "mandrake_sessions.rescue.report",
            "TableSalvage": "mandrake_sessions.rescue.report",
            "diagnose": "mandrake_sessions.rescue.diagnosis",
            "salvage": "mandrake_sessions.rescue.salvage",
        },
    )

__all__ = [
    "UNSET",
    "AlreadyExistsError",
    "BackupError",
    "Closeable",
    "CommitOutcomeUnknownError",
    "ConnectionPool",
    "ConstraintViolationError",
    "CorruptDatabaseError",
    "DatabaseBusyError",
    "DatabaseError",
    "DatabaseFolderError",
    "DatabaseHandle",
    "DatabaseIOError",
    "DatabaseMissingError",
    "DatabaseMovedError",
    "DatabaseNamesError",
    "DatabaseOpenError",
    "DatabaseOptions",
    "DatabasePathError",
    "DatabaseStats",
    "Durability",
    "Exchange",
    "ForkedPoolError",
    "HandleReleasedError",
    "HealthCheck",
    "HealthLevel",
    "HealthMonitor",
    "HealthReport",
    "HealthStatus",
    "ImportSourceError",
    "InvalidArgumentError",
    "LostLogError",
    "MandrakeManager",
    "MandrakeSessionsError",
    "MigrationError",
    "NewTurn",
    "NoMemoryError",
    "NotADatabaseError",
    "NotFoundError",
    "NotInitializedError",
    "OptionsConflictError",
    "PendingToolCall",
    "PoolClosedError",
    "PoolOptions",
    "PoolStats",
    "ReadOnlyDatabaseError",
    "ReentrantScopeError",
    "Request",
    "RequestAlreadyExistsError",
    "RequestNotFoundError",
    "Response",
    "ResponseAlreadyExistsError",
    "ResponseNotFoundError",
    "RestoreError",
    "Round",
    "RoundAlreadyExistsError",
    "RoundNotFoundError",
    "RoundUpdate",
    "SalvageError",
    "SalvageReport",
    "SchemaTooNewError",
    "Session",
    "SessionAlreadyExistsError",
    "SessionEvent",
    "SessionHistory",
    "SessionManager",
    "SessionNotFoundError",
    "SessionTransaction",
    "SessionUpdate",
    "SessionUsage",
    "ShutdownHook",
    "ShutdownHookError",
    "ShutdownReport",
    "StaleLogError",
    "StaleRevisionError",
    "StatementError",
    "Storable",
    "StorageFullError",
    "StreamBackpressureError",
    "StreamingStatus",
    "Subscription",
    "TableSalvage",
    "ThreadStartError",
    "TooManyFilesError",
    "ToolCall",
    "TransactionLostError",
    "Turn",
    "TurnAlreadyExistsError",
    "TurnBeingWrittenError",
    "TurnFinishedError",
    "TurnInterruptedError",
    "TurnNotFoundError",
    "TurnStatus",
    "TurnUpdate",
    "TurnWriter",
    "UnrecognizedDatabaseError",
    "Unset",
    "UnsupportedSQLiteError",
    "ValueChange",
    "Watch",
    "Workspace",
    "WorkspaceAlreadyExistsError",
    "WorkspaceManager",
    "WorkspaceNotFoundError",
    "WorkspacePlaceError",
    "default_pool",
    "diagnose",
    "install_shutdown_hook",
    "salvage",
    "storable",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
