"""Ctrl-C at any call of what hosts do with workspaces and files leaves nothing half there."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from interleaving_kit import Thread, interrupted_at
from kits.pools import quick_pool
from kits.waiting import until

from mandrake_sessions import (
    ConnectionPool,
    MandrakeManager,
    SessionManager,
    WorkspaceAlreadyExistsError,
    WorkspaceNotFoundError,
    install_shutdown_hook,
)
from mandrake_sessions.database.pool.file_handle import file_handle

pytestmark = pytest.mark.usefixtures("no_finalizers")


class Stand:
    """A root with one workspace, and a database elsewhere with a backup."""

    def __init__(self, folder: Path) -> None:
        self.pool = quick_pool(close_timeout=5.0)
        self.folder = folder
        self.host = MandrakeManager(folder / "root", pool=self.pool).init()
        self.first = self.host.create_workspace("first")
        self.first.sessions.create_session("kept")
        self.id = self.first.id or ""
        self.path = folder / "other.sqlite"
        with SessionManager(self.path, pool=self.pool) as sessions:
            sessions.create_session("stored")
            sessions.backup(folder / "backup.sqlite")

    def require_free(self, error: object) -> None:
        """Make sure that every later call works, in this thread and in another one."""
        self.host.sessions.create_session()
        Thread(self.host.sessions.create_session).result()
        for leased in file_handle(self.host.sessions.handle).file.leased_connections():
            assert not leased.queue._pins, error
        for known in self.host.list_workspaces():
            with self.host.get_workspace(known.id) as workspace:
                workspace.sessions.create_session()
        until(lambda: self.pool.stats().handles == 1, error)


def create(stand: Stand) -> None:
    stand.host.create_workspace("second")


def after_create(stand: Stand, error: object) -> None:
    try:
        made = stand.host.create_workspace("second")
    except WorkspaceAlreadyExistsError:
        known = stand.host.find_workspace("second")
        assert known is not None
        made = stand.host.get_workspace(known.id)
    made.sessions.create_session()
    stand.host.delete_workspace(made.id or "")


def get(stand: Stand) -> None:
    stand.first.close()
    stand.host.get_workspace(stand.id).sessions.count_sessions()


def after_get(stand: Stand, error: object) -> None:
    assert stand.host.get_workspace(stand.id).sessions.count_sessions() >= 1


def delete(stand: Stand) -> None:
    stand.host.delete_workspace(stand.id)


def after_delete(stand: Stand, error: object) -> None:
    with contextlib.suppress(WorkspaceNotFoundError):
        stand.host.delete_workspace(stand.id)
    assert not (stand.folder / "root" / "workspaces" / "first" / ".ws").exists()
    stand.host.create_workspace("first").close()


def move(stand: Stand) -> None:
    stand.host.get_workspace(stand.id).close()
    place, target = stand.folder / "root" / "workspaces" / "first", stand.folder / "moved"
    if place.exists():
        os.rename(place, target)
    stand.host.move_workspace(stand.id, target)


def after_move(stand: Stand, error: object) -> None:
    if (stand.folder / "moved").exists():
        stand.host.move_workspace(stand.id, stand.folder / "moved")
    assert stand.host.get_workspace(stand.id).sessions.count_sessions() >= 1


def restore(stand: Stand) -> None:
    SessionManager(stand.path, pool=stand.pool).restore(
        stand.folder / "backup.sqlite", overwrite=True
    )


def backup(stand: Stand) -> None:
    with SessionManager(stand.path, pool=stand.pool) as sessions:
        sessions.backup(stand.folder / "backup.sqlite", overwrite=True)


def after_copying(stand: Stand, error: object) -> None:
    restore(stand)
    with SessionManager(stand.path, pool=stand.pool) as sessions:
        assert [each.title for each in sessions.list_sessions()] == ["stored"], error
    left = {each.name for each in stand.folder.iterdir()}
    assert left <= {"root", "moved", "other.sqlite", "backup.sqlite"}, error


DOING: dict[str, tuple[Callable[[Stand], None], Callable[[Stand, object], None]]] = {
    "a new workspace": (create, after_create),
    "an opening of a workspace": (get, after_get),
    "a removal of a workspace": (delete, after_delete),
    "a move of a workspace": (move, after_move),
    "a restoring": (restore, after_copying),
    "a backup": (backup, after_copying),
}


@pytest.mark.parametrize("doing", DOING)
@pytest.mark.timeout(900)
def test_ctrl_c_at_any_call_of_a_host_leaves_nothing_half_done(
    doing: str, tmp_path: Path, campaign: Any
) -> None:
    """
    ::

        interrupted   registers ─ makes or removes files ─ opens or closes them
                      Ctrl-C at each call of it, and the traceback is kept
        the same      does it again, or finds it done; every other call works
    """
    work, then = DOING[doing]
    kept = []
    step = campaign.pick(311, 23, 3)
    for number in itertools.count(0, step):
        stand = Stand(tmp_path / str(number))
        with stand.pool, stand.host:
            error = interrupted_at(number, partial(work, stand), keeps=True)
            assert error is None or isinstance(error, KeyboardInterrupt), error
            kept.append(error)
            then(stand, error)
            stand.require_free(error)
        if error is None:
            break
    print(f"\n{doing}: every {step} of {number} places")  # a result
    assert len(kept) >= 2


def closing_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "mandrake-shutdown"]


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_of_a_shutdown_hook_leaves_the_former_handlers(campaign: Any) -> None:
    """
    ::

        interrupted   takes the signals ─ starts a thread ─ gives them back ─ ends the thread
                      Ctrl-C at each call of it
        the same      installs and uninstalls another: each signal has the handler of before
    """
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    kept = []
    with ConnectionPool() as pool:
        for number in itertools.count(0, campaign.pick(2, 1, 1)):

            def install() -> None:
                install_shutdown_hook(pool=pool, signals=numbers).uninstall()

            error = interrupted_at(number, install, keeps=True)
            hook = install_shutdown_hook(pool=pool, signals=numbers)
            assert hook.is_installed, error
            assert [signal.getsignal(number) for number in numbers] == [hook._handle] * 2, error
            hook.uninstall()
            assert [signal.getsignal(number) for number in numbers] == before, error
            until(lambda: not closing_threads(), error)
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt)
            kept.append(error)
    print(f"\na shutdown hook: {number} places")  # a result
    assert len(kept) > 10


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_of_an_opening_leaves_the_host_closed(
    tmp_path: Path, campaign: Any
) -> None:
    stand = Stand(tmp_path)
    kept = []
    with stand.pool:
        for number in itertools.count(0, campaign.pick(5, 2, 1)):
            host = MandrakeManager(tmp_path / "root", pool=stand.pool)
            error = interrupted_at(number, host.init, keeps=True)
            assert host.sessions.is_initialized is (error is None), error
            host.close()
            if error is None:
                break
            kept.append(error)
        stand.host.close()
    assert len(kept) > 20
