"""The logger of a module, got when something is logged."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


def get_logger(name: str) -> FilteringBoundLogger:
    """Return structlog's logger of a name.

    structlog, with Rich where it is there, takes longer to import than the library, and most
    processes log nothing.
    """
    try:
        import structlog
    except OSError:
        # No descriptor is free to read it with. What is told now is often just that.
        return _PlainLogger()
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


class _PlainLogger:
    def __getattr__(self, _level: str) -> Any:
        return _write


def _write(event: str, **fields: object) -> None:
    told = "".join(f" {name}={value!r}" for name, value in fields.items())
    sys.stderr.write(f"{event}{told}\n")
