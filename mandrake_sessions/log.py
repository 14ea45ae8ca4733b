"""The logger of a module, made at its first event."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.late_imports import late_import
from mandrake_sessions.visible import visible

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger
    from structlog.typing import FilteringBoundLogger

    HostLogger: TypeAlias = BoundLogger
else:
    # For callers that read type hints at run time: the name would import structlog.
    HostLogger = Any


def get_logger(name: str) -> FilteringBoundLogger:
    """Return structlog's logger of a module's top folder; its methods never raise.

    The folder and not the module, so that a host's configuration holds when a module moves.

    While the host has not configured structlog, it writes to stderr: structlog's own default is
    stdout, which many hosts use for a protocol.

    structlog, with Rich if that is installed, takes longer to import than the library, and most
    processes log nothing. So the first event imports it.

    Args:
        name: the module's ``__name__``.
    """
    return _Logger(".".join(name.split(".")[:2]))


class _Logger:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Any:
        return partial(_log, self._name, level)


def usable_logger(logger: HostLogger | None) -> HostLogger | None:
    """Return a host's logger for the events of its own managers, after a check.

    Raises:
        InvalidArgumentError: it has no ``info()``.
    """
    if logger is None:
        return None
    info = None
    with contextlib.suppress(Exception):  # an attribute of a host's own
        info = getattr(logger, "info", None)
    if not callable(info):
        raise InvalidArgumentError("logger must be a logger of structlog's, or None.")
    return logger


def log_for_host(logger: HostLogger, event: str, **fields: object) -> None:
    """Log an event of a manager through the logger that the host gave to it.

    While structlog is not configured, its loggers print to stdout. Then the event goes where the
    library's own events go.
    """
    try:
        with late_import:
            import structlog
        if not structlog.is_configured() and hasattr(logger, "_logger"):
            # None if it is unbound; a printer if a value was bound; or the host's own.
            printer: Any = logger._logger
            if printer is None or getattr(printer, "_file", None) is sys.stdout:
                logger = _unconfigured(structlog.get_context(logger))
        logger.info(event, **fields)
    except Exception:  # noqa: BLE001  # the call has succeeded, though a host's logger fails
        _log(__name__, "warning", "logger_failed", event_not_logged=event)


def _log(name: str, level: str, event: str, **fields: object) -> None:
    try:
        with late_import:
            import structlog
        # Read at each event: the host's configuration counts from then on.
        logger = structlog.get_logger(name) if structlog.is_configured() else _unconfigured({})
        getattr(logger, level)(event, **fields)
    except Exception:  # noqa: BLE001  # no descriptor is free to import it, a host's sink is gone
        # The event often reports this very failure; and the library must finish its work.
        with contextlib.suppress(Exception):
            shown = "".join(f" {key}={value!r}" for key, value in fields.items())
            sys.stderr.write(f"{event}{shown}\n")


def _unconfigured(context: Mapping[str, Any]) -> Any:
    """Return a logger to stderr that needs no configuration, and changes none of structlog's."""
    import structlog

    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return structlog.wrap_logger(
        _Stderr(),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            _without_controls,
            # Without the local variables that Rich would show: they hold conversations.
            structlog.dev.ConsoleRenderer(
                colors=is_terminal, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        **context,
    )


def _without_controls(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Remove control characters: a stored id comes from a host and could steer the terminal."""
    return {key: visible(it) if isinstance(it, str) else it for key, it in event.items()}


class _Stderr:
    """Prints, without a lock that a fork could leave held; does nothing without a stderr."""

    def debug(self, line: str) -> None:
        """Print a line."""
        if sys.stderr is not None:
            sys.stderr.write(f"{line}\n")

    info = warning = error = critical = debug
