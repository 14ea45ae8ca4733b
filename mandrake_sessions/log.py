"""The logger of a module, got when something is logged."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from mandrake_sessions.late_imports import late_import

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger
    from structlog.typing import FilteringBoundLogger

    HostLogger: TypeAlias = BoundLogger
else:
    # For who asks for type hints at run time: naming structlog would import it.
    HostLogger = Any


def get_logger(name: str) -> FilteringBoundLogger:
    """Return structlog's logger of a name.

    structlog, with Rich where it is there, takes longer to import than the library, and most
    processes log nothing.
    """
    try:
        with late_import:
            import structlog
    except (OSError, ImportError):
        # No descriptor is free to read it with, or its folder is not to be seen any more. What is
        # told now is often just that.
        return _PlainLogger()
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


class _PlainLogger:
    def __getattr__(self, _level: str) -> Any:
        return _write


def _write(event: str, **fields: object) -> None:
    told = "".join(f" {name}={value!r}" for name, value in fields.items())
    sys.stderr.write(f"{event}{told}\n")
