"""Short ids: the ending of an id that no other session has, long enough to be typed safely.

The ending, because ids that are made at the same time begin alike (UUIDv7).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mandrake_sessions.cli.errors import CommandError, ExitCode
from mandrake_sessions.errors import SessionNotFoundError
from mandrake_sessions.manager import SessionManager
from mandrake_sessions.records.sessions import find_session_ids, ids_ending_as

_SHORTEST: Final = 8
_WHOLE: Final = 12
"""An id of at most so many characters is not shortened."""
_LEAST_GIVEN: Final = 4
_MOST_NAMED: Final = 5


def shortened(sessions: SessionManager, ids: Iterable[str]) -> dict[str, str]:
    """Return what ``whole_id`` takes for each id: its ending, or itself."""
    long = [id for id in ids if len(id) > _WHOLE]
    short = {id: id for id in ids}
    if not long:
        return short
    known = sessions.handle.fetch(ids_ending_as(long, _SHORTEST), "short ids")
    for id in long:
        others = [other for other in known if other != id and other[-_SHORTEST:] == id[-_SHORTEST:]]
        for length in range(_SHORTEST, len(id)):
            if not any(other.endswith(id[-length:]) for other in others):
                short[id] = id[-length:]
                break
    return short


def whole_id(sessions: SessionManager, given: str) -> str:
    """Return the id of the session that is meant: by it, or by its ending or its beginning.

    Raises:
        SessionNotFoundError: there is none.
        CommandError: several are meant.
    """
    if len(given) < _LEAST_GIVEN or sessions.find_session(given) is not None:
        return given
    found = sessions.handle.fetch(find_session_ids(given, _MOST_NAMED + 1), "short ids")
    ending = [id for id in found if id.endswith(given)]
    if len(ending) == 1 or len(found) == 1:
        return (ending if len(ending) == 1 else found)[0]
    if not found:
        raise SessionNotFoundError(given)
    named = ", ".join(found[:_MOST_NAMED]) + (", …" if len(found) > _MOST_NAMED else "")
    raise CommandError(
        f"Several sessions are meant by {given!r}: {named}.", ExitCode.USAGE, "Give more of the id."
    )
