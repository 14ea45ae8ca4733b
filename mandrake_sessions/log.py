"""The logger of a module, got when something is logged."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
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
    """Return structlog's logger of a name; nothing that it is told raises.

    structlog, with Rich where it is there, takes longer to import than the library, and most
    processes log nothing: so it is imported by the first event.
    """
    return _Logger(name)


class _Logger:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Any:
        return partial(_tell, self._name, level)


def _tell(name: str, level: str, event: str, **fields: object) -> None:
    try:
        with late_import:
            import structlog
        getattr(structlog.get_logger(name), level)(event, **fields)
    except Exception:  # noqa: BLE001  # no descriptor is free to import it, a host's sink is gone
        # Often it is just that which is told here; and what the library does must come to its end.
        with contextlib.suppress(Exception):
            told = "".join(f" {key}={value!r}" for key, value in fields.items())
            sys.stderr.write(f"{event}{told}\n")
