"""What an engine is to the layers above it."""

from __future__ import annotations

from mandrake_sessions.errors import PoolClosedError


class FileParkedError(PoolClosedError):
    """The file was closed because others needed its place; its handles open it again.

    No caller sees it: a handle answers it by opening the file.
    """
