"""UUIDv7 ids and the microsecond UTC clock."""

from __future__ import annotations

import os
import random
import time
from datetime import UTC, datetime, timedelta
from typing import Final

MAX_ID_LENGTH: Final = 255
"""Characters of an id that a caller gives."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# An own generator: a host that seeds the shared one must not make ids repeat, and a forked child
# must not repeat its parent's.
_random = random.Random(os.urandom(32))


def _reseed() -> None:
    _random.seed(os.urandom(32))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reseed)


def new_id() -> str:
    """Return a new UUIDv7 (RFC 9562): milliseconds, then 12 bits of their fraction, then random.

    Ids that one thread makes at least 250 ns apart sort in the order of their making, unless the
    clock goes back.
    """
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """Return new ids that sort in their order: one time, and random numbers that follow."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = (nanoseconds << 12) // 1_000_000
    # From the left: 48 bits of milliseconds, version 7, the fraction, variant 2, 14 random bits.
    whole = milliseconds << 32 | (0x7000 | fraction) << 16 | 0x8000 | _random.getrandbits(14)
    digits = f"{whole:020x}"
    head = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:]}-"
    # 47 random bits of 48, so that counting does not carry into the digits before.
    tail = _random.getrandbits(47)
    return [f"{head}{tail + number:012x}" for number in range(count)]


def new_stamp() -> int:
    """Return a random number of 128 bits that distinguishes a file from every other."""
    return _random.getrandbits(128)


def now() -> int:
    """Return the present time as the time columns hold it: microseconds since the epoch."""
    return time.time_ns() // 1000


def to_datetime(microseconds: int) -> datetime:
    """Return a stored time as an aware UTC datetime."""
    return _EPOCH + timedelta(microseconds=microseconds)


def to_microseconds(moment: datetime) -> int:
    """Return an aware datetime in its stored form."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
