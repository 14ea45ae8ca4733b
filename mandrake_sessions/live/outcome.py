"""Telling those who wait for a flush or an end what came of it."""

from __future__ import annotations

import copy
from concurrent.futures import Future
from typing import Any


def settle(waiters: list[Future[Any]], result: Any) -> None:
    """Give those who wait a result; who has stopped waiting is left out."""
    for future in waiters:
        if future.set_running_or_notify_cancel():
            future.set_result(result)


def fail(waiters: list[Future[Any]], error: BaseException) -> None:
    """Give each of those who wait an error of its own."""
    for future in waiters:
        if future.set_running_or_notify_cancel():
            future.set_exception(copy.copy(error))
