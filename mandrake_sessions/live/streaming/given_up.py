"""Turns of this process that nobody writes any more though they could not be ended.

Their owner lives, so no opener would take them for abandoned. This process ends them itself, when
it opens the file again. It survives the open file, whose end is what they were lost by.
"""

from __future__ import annotations

from collections.abc import Iterable

# Each step is a single one of a dict: it may be taken in any thread without a lock.
_by_owner: dict[str, dict[str, None]] = {}


def add(owner: str | None, turn_id: str) -> None:
    """Note a turn that streams under a claim of this process."""
    if owner is not None:
        _by_owner.setdefault(owner, {})[turn_id] = None


def of(owners: Iterable[str | None]) -> list[str]:
    """Return the turns of owners that are noted."""
    return [id for owner in owners if owner is not None for id in tuple(_by_owner.get(owner, ()))]


def discard(turn_ids: Iterable[str]) -> None:
    """Forget turns that have ended."""
    for id in turn_ids:
        for ids in tuple(_by_owner.values()):
            ids.pop(id, None)
