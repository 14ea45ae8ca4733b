"""UUIDv7 ids and the microsecond UTC clock."""

from __future__ import annotations

import os
import random
import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# A generator of our own: a host that seeds the shared one must not make ids repeat, and a forked
# child must not repeat its parent's.
_random = random.Random(os.urandom(32))


def _reseed() -> None:
    _random.seed(os.urandom(32))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reseed)


def new_id() -> str:
    """Return a new UUIDv7 (RFC 9562): milliseconds, then 12 bits of their fraction, then random.

    Ids made by one thread at least 250 ns apart sort in the order they were made, as far as the
    clock does not go back.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = (nanoseconds << 12) // 1_000_000
    tail = _random.getrandbits(62)
    return (
        f"{milliseconds >> 16 & 0xFFFFFFFF:08x}-{milliseconds & 0xFFFF:04x}-{0x7000 | fraction:04x}"
        f"-{0x8000 | tail >> 48:04x}-{tail & 0xFFFFFFFFFFFF:012x}"
    )


def now() -> int:
    """Return the present time as every time column holds it: microseconds since the epoch."""
    return time.time_ns() // 1000


def to_datetime(microseconds: int) -> datetime:
    """Return a stored time as an aware UTC datetime."""
    return _EPOCH + timedelta(microseconds=microseconds)


def to_microseconds(moment: datetime) -> int:
    """Return an aware datetime as it is stored."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
