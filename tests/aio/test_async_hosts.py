"""The managers of a host, for coroutines."""

from __future__ import annotations

import asyncio

import pytest
from aio_kit import lease_held, run, soon, threads
from kits.waiting import until
from kits.workspaces import id_of

from mandrake_sessions import (
    ConnectionPool,
    DatabaseFolderError,
    InvalidArgumentError,
    MandrakeManager,
    SessionManager,
    WorkspaceAlreadyExistsError,
    WorkspaceManager,
    WorkspaceNotFoundError,
)
from mandrake_sessions.aio import AsyncMandrakeManager, AsyncWorkspaceManager
from mandrake_sessions.database.pool.file_handle import file_handle


@pytest.mark.parametrize(
    ("twin", "of"),
    [(AsyncMandrakeManager, MandrakeManager), (AsyncWorkspaceManager, WorkspaceManager)],
)
def test_the_async_hosts_have_the_names_of_the_sync_ones(twin, of):
    assert [name for name in vars(of) if not name.startswith("_") and not hasattr(twin, name)] == []


def test_an_async_host_creates_opens_and_deletes_workspaces(tmp_path, pool):
    async def main():
        async with AsyncMandrakeManager(tmp_path, pool=pool) as mandrake:
            work = await mandrake.create_workspace("my-project", "for work")
            await work.sessions.create_session("There")
            await mandrake.sessions.create_session("Here")
            assert await mandrake.get_workspace(id_of(work)) is work
            assert await mandrake.sessions_for(id_of(work)) is work.sessions
            assert await mandrake.sessions_for(None) is mandrake.sessions
            assert await mandrake.list_workspaces() == [await mandrake.find_workspace("my-project")]
            assert work.workspace is not None
            assert work.workspace.name == "my-project"
            assert work.path == tmp_path / "workspaces" / "my-project"
            with pytest.raises(WorkspaceAlreadyExistsError):
                await mandrake.create_workspace("my-project")
            with pytest.raises(InvalidArgumentError):
                await mandrake.create_workspace("no good name")
            with pytest.raises(WorkspaceNotFoundError):
                await mandrake.get_workspace("missing")
            with pytest.raises(DatabaseFolderError):
                await mandrake.adopt_workspace("other", tmp_path / "nowhere")

        async with AsyncMandrakeManager(tmp_path, pool=pool) as mandrake:
            again = await mandrake.get_workspace(id_of(work))
            assert [each.title for each in await again.sessions.list_sessions()] == ["There"]
            assert (await mandrake.unregister_workspace(id_of(work))).id == work.id
            assert not again.sessions.is_initialized
            adopted = await mandrake.adopt_workspace("adopted", work.path)
            assert await adopted.sessions.count_sessions() == 1
            deleted = await mandrake.delete_workspace(id_of(adopted))
            assert deleted.id == adopted.id
            assert await mandrake.list_workspaces() == []

    run(main())
    until(lambda: not threads())


def test_a_deletion_that_is_refused_closes_nothing(tmp_path, pool):
    async def main():
        async with AsyncMandrakeManager(tmp_path, pool=pool) as mandrake:
            work = await mandrake.create_workspace("work")
            with pytest.raises(InvalidArgumentError):
                await mandrake.delete_workspace(id_of(work), timeout=-1)
            assert work.sessions.is_initialized
            assert await work.sessions.count_sessions() == 0

    run(main())


def test_every_task_receives_the_same_workspace(tmp_path, pool):
    async def main():
        async with AsyncMandrakeManager(tmp_path, pool=pool) as mandrake:
            workspace_id = id_of(await mandrake.create_workspace("one"))
        async with AsyncMandrakeManager(tmp_path, pool=pool) as mandrake:
            got = await asyncio.gather(*(mandrake.get_workspace(workspace_id) for _ in range(20)))
            assert all(each is got[0] for each in got)
            await got[0].close()
            assert (await mandrake.get_workspace(workspace_id)) is got[0]
            assert got[0].sessions.is_initialized

    run(main())


def test_a_workspace_manager_works_without_a_host(tmp_path, pool):
    async def main():
        async with AsyncWorkspaceManager(tmp_path, pool=pool) as workspace:
            assert workspace.id is None
            await workspace.sessions.create_session()
        assert (tmp_path / ".ws" / "db.sqlite").exists()

    run(main())


def test_closing_the_host_lets_the_calls_of_its_workspaces_end(tmp_path, pool):
    async def main():
        async with AsyncMandrakeManager(tmp_path, pool=pool) as mandrake:
            spaces = [await mandrake.create_workspace(f"w{n}") for n in range(5)]
            calls = [
                asyncio.create_task(each.sessions.create_session())
                for each in spaces
                for _ in range(10)
            ]
            await asyncio.sleep(0)
        assert len({session.id for session in await asyncio.gather(*calls)}) == 50

    run(main())
    until(lambda: not threads())


def test_closing_the_host_closes_every_workspace_also_when_cancelled(tmp_path, pool):
    async def main():
        mandrake = await AsyncMandrakeManager(tmp_path, pool=pool).init()
        spaces = [await mandrake.create_workspace(f"w{n}") for n in range(5)]
        closing = asyncio.create_task(mandrake.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not any(each.sessions.is_initialized for each in spaces)
        assert not mandrake.sessions.is_initialized

    run(main())


def test_an_opening_that_is_cancelled_while_it_records_a_move_closes_the_database(tmp_path, pool):
    """A moved root records its new place for a workspace outside, once it is open."""
    with ConnectionPool() as own, MandrakeManager(tmp_path / "before", pool=own) as moved:
        moved.create_workspace("outside", path=tmp_path / "outside")
    root = (tmp_path / "before").rename(tmp_path / "after")

    async def main():
        mandrake = AsyncMandrakeManager(root, pool=pool)
        queue = file_handle(other.handle).file.writer.queue
        with lease_held(other):
            opening = asyncio.create_task(mandrake.init())
            await soon(lambda: queue.waiting)
            opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert not mandrake.sessions.is_initialized
        async with mandrake:
            assert (await mandrake.find_workspace("outside")) is not None

    with SessionManager(root / "db.sqlite", pool=pool) as other:
        run(main())
