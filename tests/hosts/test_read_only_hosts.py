"""A system that is only read: its workspaces open, and nothing of them is written."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mandrake_sessions import ConnectionPool, MandrakeManager, ReadOnlyDatabaseError
from mandrake_sessions.aio import AsyncMandrakeManager


def states_below(root: Path) -> dict[str, tuple[int, int]]:
    """Return the size and time of change of each file below a folder."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            state = os.stat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (state.st_size, state.st_mtime_ns)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with one workspace, which no process has open."""
    with ConnectionPool() as pool, MandrakeManager(tmp_path / "root", pool=pool) as mandrake:
        work = mandrake.create_workspace("work")
        work.sessions.create_session("kept")
    return tmp_path / "root"


def test_workspaces_are_listed_and_read_and_nothing_changes(root: Path) -> None:
    before = states_below(root)
    with (
        ConnectionPool() as pool,
        MandrakeManager(root, pool=pool, read_only=True) as mandrake,
    ):
        (entry,) = mandrake.list_workspaces()
        sessions = mandrake.get_workspace(entry.id).sessions
        assert [each.title for each in sessions.list_sessions()] == ["kept"]
        with pytest.raises(ReadOnlyDatabaseError):
            sessions.create_session()
        for call in (
            lambda: mandrake.create_workspace("other"),
            lambda: mandrake.adopt_workspace("other", root),
            lambda: mandrake.move_workspace(entry.id, root),
            lambda: mandrake.unregister_workspace(entry.id),
            lambda: mandrake.delete_workspace(entry.id),
        ):
            with pytest.raises(ReadOnlyDatabaseError):
                call()
        assert mandrake.list_workspaces() == [entry]
    assert states_below(root) == before


def test_coroutines_read_a_system_as_well(root: Path) -> None:
    async def use() -> None:
        async with AsyncMandrakeManager(root, read_only=True) as mandrake:
            (entry,) = await mandrake.list_workspaces()
            work = await mandrake.get_workspace(entry.id)
            assert await work.sessions.count_sessions() == 1
            with pytest.raises(ReadOnlyDatabaseError):
                await mandrake.delete_workspace(entry.id)

    asyncio.run(use())
