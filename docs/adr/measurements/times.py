"""ADR 0009: a row made into a record with times as integers, and with datetimes."""

import sys
from datetime import UTC, datetime, timedelta
from timeit import timeit

import msgspec

from mandrake_sessions.ids import to_datetime

TIMES = 300_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENT = 1_700_000_000_123_456


class Record(msgspec.Struct, frozen=True):
    """A row with two times."""

    id: str
    created: object
    updated: object


def main() -> None:
    """Measure and print."""
    ways = {
        "a datetime from microseconds": lambda: to_datetime(MOMENT),
        "a record with two integers": lambda: Record("id", MOMENT, MOMENT),
        "a record with two datetimes": lambda: Record(
            "id", EPOCH + timedelta(microseconds=MOMENT), EPOCH + timedelta(microseconds=MOMENT)
        ),
    }
    for title, work in ways.items():
        sys.stdout.write(f"{title:29}{timeit(work, number=TIMES) / TIMES * 1e6:5.2f} us\n")


main()
