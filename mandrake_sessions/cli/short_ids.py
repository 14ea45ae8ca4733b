"""Short ids: the ending of an id that no other session has, long enough to be typed safely.

The ending and not the beginning: ids made at the same time begin alike (UUIDv7).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise, takewhile
from typing import Final

from mandrake_sessions.cli.errors import CommandError, ExitCode
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.errors import SessionNotFoundError
from mandrake_sessions.manager import SessionManager
from mandrake_sessions.records.sessions import find_session_ids, ids_ending_as

_SHORTEST: Final = 8
_WHOLE: Final = 12
"""An id of at most this many characters is not shortened."""
_LEAST_GIVEN: Final = 4
_MOST_NAMED: Final = 5


def shortened(sessions: SessionManager, ids: Iterable[str]) -> dict[str, str]:
    """Return the short form of each id, which ``whole_id`` accepts: its ending, or itself."""
    long = [id for id in ids if len(id) > _WHOLE]
    short = {id: id for id in ids}
    if not long:
        return short
    # Sorted by reversed text, each id is next to the one with the longest common ending.
    known = sorted(
        id[::-1]
        for id in file_handle(sessions.handle).fetch(ids_ending_as(long, _SHORTEST), "short ids")
    )
    common = [_alike(*pair) for pair in pairwise(known)]
    for at, backwards in enumerate(known):
        longest = max(*common[max(at - 1, 0) : at + 1], _SHORTEST - 1, 0)
        id = backwards[::-1]
        if id in short and longest < len(id):
            short[id] = id[-(longest + 1) :]
    return short


def _alike(one: str, other: str) -> int:
    """Return the length of the common beginning of two texts."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def whole_id(sessions: SessionManager, given: str) -> str:
    """Return the id of the session with this id, or with this ending or beginning.

    Raises:
        SessionNotFoundError: there is none.
        CommandError: there are several.
    """
    if len(given) < _LEAST_GIVEN or sessions.find_session(given) is not None:
        return given
    found = file_handle(sessions.handle).fetch(
        find_session_ids(given, _MOST_NAMED + 1), "short ids"
    )
    ending = [id for id in found if id.endswith(given)]
    if len(ending) == 1 or len(found) == 1:
        return (ending if len(ending) == 1 else found)[0]
    if not found:
        raise SessionNotFoundError(given)
    named = ", ".join(found[:_MOST_NAMED]) + (", …" if len(found) > _MOST_NAMED else "")
    raise CommandError(
        f"Several sessions are meant by {given!r}: {named}.", ExitCode.USAGE, "Give more of the id."
    )
