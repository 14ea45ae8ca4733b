"""A folder is swapped for a link between any two steps of a call: no other folder is harmed."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from kits.waiting import PATIENCE
from kits.workspaces import id_of

import mandrake_sessions
from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    MandrakeManager,
    MandrakeSessionsError,
    PoolOptions,
    SessionManager,
)
from mandrake_sessions.workspace import workspace_database

PACKAGE = str(Path(mandrake_sessions.__file__).parent)
NEW_FILES = {".ws/db.sqlite-wal", ".ws/db.sqlite-shm"}
"""What SQLite may make in a folder that comes while it opens its log by its name."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders have no descriptors there")


def delete(mandrake: MandrakeManager, id: str) -> None:
    mandrake.delete_workspace(id, timeout=0.3)


def get(mandrake: MandrakeManager, id: str) -> None:
    work = mandrake.get_workspace(id)
    work.sessions.create_session("new")
    work.close()


def new_pool(busy_timeout: float = PATIENCE) -> ConnectionPool:
    options = DatabaseOptions(busy_timeout=busy_timeout)
    return ConnectionPool(PoolOptions(linger=0.0, max_idle=0, database=options))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(folder)): each.read_bytes()
        for each in folder.rglob("*")
        if each.is_file()
    }


class Swap:
    """Calls something and, at one of its steps, puts a link in the place of a folder.

    A step is a line of the package's that is about to be run.
    """

    def __init__(self, at: int, folder: Path, victim: Path) -> None:
        self.is_done = False
        self._at = at
        self._steps = itertools.count()
        self._folder, self._victim = folder, victim

    def call(self, work: Callable[[], None]) -> None:
        sys.settrace(self._enter)
        try:
            # Only typed errors.
            with contextlib.suppress(MandrakeSessionsError):
                work()
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, _: str, __: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, _: FrameType, event: str, __: Any) -> Any:
        if event == "line" and not self.is_done and next(self._steps) == self._at:
            self.is_done = True
            sys.settrace(None)
            with contextlib.suppress(FileNotFoundError):
                self._folder.rename(self._folder.with_name(f"{self._folder.name}-aside"))
                self._folder.symlink_to(self._victim)
        return self._line


@pytest.mark.parametrize("place", ["work", "work/.ws"])
@pytest.mark.parametrize("work", [delete, get])
def test_a_folder_that_is_swapped_between_two_steps_harms_no_other(
    tmp_path: Path, campaign: Any, work: Callable[[MandrakeManager, str], None], place: str
) -> None:
    swaps = 0
    for at in itertools.count(0, campaign.pick(97, 13, 1)):
        here = tmp_path / str(at)
        victim = here / "victim"
        with new_pool() as pool, MandrakeManager(here / "root", pool=pool) as mandrake:
            made = mandrake.create_workspace("work", path=here / "work")
            # With a log that a crash has left: it holds the conversation.
            with SessionManager(workspace_database(here / "crashing"), pool=pool) as sessions:
                sessions.create_session("in the log")
                shutil.copytree(here / "crashing", victim)
        workspace_database(victim).with_name("db.sqlite-shm").unlink()
        before = contents(victim)

        swap = Swap(at, here / place, victim / ".ws" if place.endswith(".ws") else victim)
        with new_pool(0.3) as pool, MandrakeManager(here / "root", pool=pool) as mandrake:
            swap.call(partial(work, mandrake, id_of(made)))

        after = contents(victim)
        assert {name: after.get(name) for name in before} == before, at
        # And where closing sets aside the log of a file that has moved, it does so by the name.
        new = {name for name in after.keys() - before.keys() if ".of-moved-file-" not in name}
        assert new <= (NEW_FILES if work is get else set()), at
        shutil.rmtree(here)
        if not swap.is_done:
            break
        swaps += 1
    assert swaps > 10
