"""Turns of this process that have lost their writer and could not be ended.

Their owner lives, so no opening would take them for abandoned. This process ends them itself when
it opens the file again. The record outlives the open file, because they were lost by its end.
"""

from __future__ import annotations

from collections.abc import Iterable

# Each step is one operation of a dict, so any thread may take it without a lock.
_by_owner: dict[str, dict[str, None]] = {}


def add(owner: str | None, turn_id: str) -> None:
    """Record a turn that streams under a claim of this process."""
    if owner is not None:
        _by_owner.setdefault(owner, {})[turn_id] = None


def of(owners: Iterable[str | None]) -> list[str]:
    """Return the recorded turns of some owners."""
    return [id for owner in owners if owner is not None for id in tuple(_by_owner.get(owner, ()))]


def discard(turn_ids: Iterable[str]) -> None:
    """Remove turns that have ended."""
    for id in turn_ids:
        for ids in tuple(_by_owner.values()):
            ids.pop(id, None)
