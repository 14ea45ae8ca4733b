"""The same managers for coroutines: ``AsyncSessionManager`` is ``SessionManager`` to await.

>>> from mandrake_sessions.aio import AsyncMandrakeManager
"""

from mandrake_sessions.aio.cancellation import CancelledCall, cancelled_call
from mandrake_sessions.aio.hosts import AsyncMandrakeManager, AsyncWorkspaceManager
from mandrake_sessions.aio.manager import AsyncSessionManager
from mandrake_sessions.aio.writer import AsyncTurnWriter

__all__ = [
    "AsyncMandrakeManager",
    "AsyncSessionManager",
    "AsyncTurnWriter",
    "AsyncWorkspaceManager",
    "CancelledCall",
    "cancelled_call",
]
