"""A workspace is what was registered: roots that move, copies of them, links, damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from mandrake_sessions import (
    ConnectionPool,
    DatabaseBusyError,
    DatabaseFolderError,
    DatabaseMissingError,
    DatabasePathError,
    NotADatabaseError,
    SessionManager,
    UnrecognizedDatabaseError,
    WorkspaceAlreadyExistsError,
    WorkspaceNotFoundError,
    WorkspacePlaceError,
)
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.records import sql
from mandrake_sessions.workspace import workspace_database

OpenRoot = Callable[[Path], Any]
GARBAGE = b"no database, and longer than a header of one" * 300


def titles(workspace: Any) -> list[str]:
    return [each.title for each in workspace.sessions.list_sessions()]


def files_in(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


@pytest.fixture
def closed(pool: ConnectionPool) -> Callable[[Path], None]:
    """Let go of what lingers open of a folder, so that it may be moved."""

    def close(folder: Path) -> None:
        for database in folder.rglob("db.sqlite"):
            with pool._reserved(database, _budget(), "delete"):
                pass

    return close


def _budget() -> Any:
    from mandrake_sessions.engine.budget import Budget

    return Budget(30.0)


def make(open_root: OpenRoot, root: Path, **workspaces: Path | None) -> dict[str, str]:
    """Make a root with workspaces; each has one session, called as it is."""
    made = {}
    with open_root(root) as host:
        for name, path in workspaces.items():
            work = host.create_workspace(name, path=path)
            work.sessions.create_session(name)
            made[name] = work.id
    return made


# -- roots that move, and copies of them ----------------------------------------------------------


def test_a_root_that_was_moved_finds_its_workspaces(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None]
) -> None:
    root, moved, outside = tmp_path / "root", tmp_path / "far" / "moved", tmp_path / "outside"
    ids = make(open_root, root, inside=None, deep=root / "a" / "b" / "deep", outside=outside)
    closed(tmp_path)
    moved.parent.mkdir()
    root.rename(moved)

    with open_root(moved) as host:
        for name, path in (
            ("inside", moved / "workspaces" / "inside"),
            ("deep", moved / "a" / "b" / "deep"),
            ("outside", outside),
        ):
            work = host.get_workspace(ids[name])
            assert titles(work) == [name]
            assert work.path == path
            assert host.find_workspace(name).path == str(path)
            assert host.database_of(ids[name]) == workspace_database(path)
        assert [each.path for each in host.list_workspaces()] == [
            str(moved / "a" / "b" / "deep"),
            str(moved / "workspaces" / "inside"),
            str(outside),
        ]
        with pytest.raises(WorkspaceAlreadyExistsError):
            host.create_workspace("again", path=moved / "workspaces" / "inside")
        host.delete_workspace(ids["deep"])
        host.delete_workspace(ids["inside"])
    assert not root.exists()
    assert list((moved / "workspaces").iterdir()) == []


def test_paths_below_the_root_are_stored_relative_to_it(
    tmp_path: Path, open_root: OpenRoot, pool: ConnectionPool
) -> None:
    root = tmp_path / "root"
    make(open_root, root, inside=None, outside=tmp_path / "outside", deep=root / "a" / "deep")

    with (
        SessionManager(root / "db.sqlite", pool=pool) as system,
        file_handle(system.handle).read() as tx,
    ):
        assert {row[1]: row[2] for row in tx.rows(sql.ALL_WORKSPACES)} == {
            "inside": "workspaces/inside",
            "deep": "a/deep",
            "outside": str(tmp_path / "outside"),
        }


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts a folder a second time"
)
def test_a_root_that_is_mounted_twice_is_one(tmp_path: Path, open_root: OpenRoot) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    ids = make(open_root, one / "root", inside=None, outside=one / "outside")
    other.mkdir()
    if subprocess.run(["mount", "--bind", one, other], check=False).returncode:
        pytest.skip("this process may not mount")
    try:
        with open_root(other / "root") as host:
            inside = host.get_workspace(ids["inside"])
            assert titles(inside) == ["inside"]
            assert inside.path == other / "root" / "workspaces" / "inside"
            for path in (one / "root" / "workspaces" / "inside", other / "outside"):
                with pytest.raises(WorkspaceAlreadyExistsError):
                    host.adopt_workspace("again", path)
            made = host.create_workspace("made", path=one / "root" / "made")
            assert made.path == other / "root" / "made"
        with open_root(one / "root") as host:
            assert host.get_workspace(made.id).path == one / "root" / "made"
    finally:
        subprocess.run(["umount", other], check=True)


def test_a_copied_root_works_on_its_own_copies(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None]
) -> None:
    root, copy = tmp_path / "root", tmp_path / "copy"
    # One by its path, one by default: both lie below the root.
    ids = make(open_root, root, inside=None, named=root / "projects" / "named")
    closed(root)
    shutil.copytree(root, copy)

    with open_root(copy) as host:
        host.get_workspace(ids["inside"]).sessions.create_session("in the copy")
        host.delete_workspace(ids["named"])
        host.delete_workspace(ids["inside"])
        assert host.list_workspaces() == []

    assert not list(copy.rglob(".ws"))
    with open_root(root) as host:
        assert {name: titles(host.get_workspace(id)) for name, id in ids.items()} == {
            name: [name] for name in ids
        }


def test_a_copied_root_does_not_touch_what_the_original_has_outside(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None]
) -> None:
    root, copy, outside = tmp_path / "root", tmp_path / "copy", tmp_path / "outside"
    ids = make(open_root, root, outside=outside)
    closed(tmp_path)
    shutil.copytree(root, copy)

    with open_root(copy) as host:
        for call in (host.get_workspace, host.delete_workspace, host.sessions_for):
            with pytest.raises(WorkspacePlaceError, match="copy"):
                call(ids["outside"])
        with pytest.raises(WorkspacePlaceError):
            host.database_of(ids["outside"])
        # It can be had all the same: by saying so.
        assert host.move_workspace(ids["outside"], outside).path == str(outside)
        assert titles(host.get_workspace(ids["outside"])) == ["outside"]
        host.unregister_workspace(ids["outside"])
    closed(tmp_path)

    with open_root(root) as host:
        assert titles(host.get_workspace(ids["outside"])) == ["outside"]


def test_a_copy_of_a_root_that_was_moved_does_not_touch_what_it_has_outside(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None]
) -> None:
    """The moved root was opened, its workspace outside was not."""
    root, moved, copy = tmp_path / "root", tmp_path / "moved", tmp_path / "copy"
    ids = make(open_root, root, outside=tmp_path / "outside")
    closed(tmp_path)
    root.rename(moved)
    with open_root(moved) as host:
        assert len(host.list_workspaces()) == len(ids)
    closed(tmp_path)
    shutil.copytree(moved, copy)

    with open_root(copy) as host:
        for call in (host.get_workspace, host.delete_workspace):
            with pytest.raises(WorkspacePlaceError, match="copy"):
                call(ids["outside"])
    closed(tmp_path)
    with open_root(moved) as host:
        assert titles(host.get_workspace(ids["outside"])) == ["outside"]


def test_a_copy_whose_original_is_gone_takes_its_place(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None]
) -> None:
    """As a root that is moved to another disk."""
    root, copy, outside = tmp_path / "root", tmp_path / "copy", tmp_path / "outside"
    ids = make(open_root, root, outside=outside)
    closed(tmp_path)
    shutil.copytree(root, copy)
    shutil.rmtree(root)

    with open_root(copy) as host:
        assert titles(host.get_workspace(ids["outside"])) == ["outside"]
    # It is the one that registers it now: another root in the old place changes nothing.
    make(open_root, root, other=None)
    with open_root(copy) as host:
        assert titles(host.get_workspace(ids["outside"])) == ["outside"]
        host.delete_workspace(ids["outside"])
    assert not workspace_database(outside).exists()


def test_a_root_restored_in_its_place_keeps_its_workspaces(
    tmp_path: Path, open_root: OpenRoot, pool: ConnectionPool
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    ids = make(open_root, root, outside=outside)
    with SessionManager(root / "db.sqlite", pool=pool) as system:
        system.handle.backup(tmp_path / "backup.sqlite")
    SessionManager(root / "db.sqlite", pool=pool).restore(
        tmp_path / "backup.sqlite", overwrite=True
    )

    with open_root(root) as host:
        assert titles(host.get_workspace(ids["outside"])) == ["outside"]


def test_a_root_is_the_same_by_every_spelling(tmp_path: Path, open_root: OpenRoot) -> None:
    root, link = tmp_path / "root", tmp_path / "link"
    link.symlink_to(root)
    ids = make(open_root, link, inside=None)

    with open_root(root) as host:
        assert titles(host.get_workspace(ids["inside"])) == ["inside"]
        assert host.get_workspace(ids["inside"]).path == root / "workspaces" / "inside"
        with pytest.raises(WorkspaceAlreadyExistsError):
            host.adopt_workspace("again", link / "workspaces" / "inside")
        by_link = host.adopt_workspace("whole", link)
        assert by_link.path == root
    with open_root(link) as host:
        assert {each.path for each in host.list_workspaces()} == {
            str(root),
            str(root / "workspaces" / "inside"),
        }


def test_entries_of_an_earlier_version_move_with_their_root_after_an_opening(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None], pool: ConnectionPool
) -> None:
    root = tmp_path / "root"
    ids = make(open_root, root, work=None)
    with (
        SessionManager(root / "db.sqlite", pool=pool) as system,
        file_handle(system.handle).write() as tx,
    ):
        stored = {"path": str(root / "workspaces" / "work"), "id": ids["work"], "description": None}
        tx.rows(sql.MOVE_WORKSPACE, stored)

    with open_root(root) as host:
        with pytest.raises(WorkspaceAlreadyExistsError):
            host.create_workspace("other", path=root / "workspaces" / "work")
        assert titles(host.get_workspace(ids["work"])) == ["work"]
    closed(root)
    root.rename(tmp_path / "moved")
    with open_root(tmp_path / "moved") as host:
        assert titles(host.get_workspace(ids["work"])) == ["work"]


# -- folders that move ----------------------------------------------------------------------------


def test_a_moved_folder_is_registered_anew_under_the_same_name(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    ids = make(open_root, tmp_path / "root", work=old, other=None)
    closed(tmp_path)
    old.rename(new)

    with open_root(tmp_path / "root") as host:
        with pytest.raises(DatabaseMissingError):
            host.get_workspace(ids["work"])
        assert not old.exists()
        moved = host.move_workspace(ids["work"], new)
        assert (moved.id, moved.name, moved.path) == (ids["work"], "work", str(new))
        assert titles(host.get_workspace(ids["work"])) == ["work"]
        with pytest.raises(WorkspaceNotFoundError):
            host.move_workspace("no such id", new)
        with pytest.raises(DatabaseFolderError):
            host.move_workspace(ids["work"], tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DatabaseMissingError):
            host.move_workspace(ids["work"], tmp_path / "empty")
        with pytest.raises(WorkspaceAlreadyExistsError) as caught:
            host.move_workspace(ids["work"], tmp_path / "root" / "workspaces" / "other")
        assert caught.value.id == ids["other"]
        assert host.find_workspace("work") == host.get_workspace(ids["work"]).workspace


def test_an_open_workspace_whose_folder_was_moved_goes_on_at_its_new_place(
    tmp_path: Path, open_root: OpenRoot
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with open_root(tmp_path / "root") as host:
        work = host.create_workspace("work", path=old)
        work.sessions.create_session("before")
        old.rename(new)

        host.move_workspace(work.id, new)

        again = host.get_workspace(work.id)
        again.sessions.create_session("after")
        assert sorted(titles(again)) == ["after", "before"]
        assert again.path == new
    assert not old.exists()


def test_a_workspace_that_another_manager_has_moved_is_opened_at_its_new_place(
    tmp_path: Path, open_root: OpenRoot
) -> None:
    """A folder at its former place is no workspace any more: nothing may be stored there."""
    old, new = tmp_path / "old", tmp_path / "new"
    with open_root(tmp_path / "root") as host, open_root(tmp_path / "root") as other:
        work = host.create_workspace("work", path=old)
        work.sessions.create_session("before")
        there = other.get_workspace(work.id)
        backup = tmp_path / "backup"
        work.sessions.backup(backup)
        (new / ".ws").mkdir(parents=True)
        backup.rename(new / ".ws" / "db.sqlite")

        host.move_workspace(work.id, new)
        other.get_workspace(work.id).sessions.create_session("after")

        assert other.get_workspace(work.id).path == new
        assert not there.sessions.is_initialized
        assert sorted(titles(host.get_workspace(work.id))) == ["after", "before"]


def test_adopting_a_folder_under_the_name_of_a_lost_one_moves_it(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    ids = make(open_root, tmp_path / "root", work=old)
    with open_root(tmp_path / "root") as host:
        # While it is where it was, its name is taken.
        make(open_root, tmp_path / "elsewhere", other=new)
        with pytest.raises(WorkspaceAlreadyExistsError):
            host.adopt_workspace("work", new)
    closed(tmp_path)
    shutil.rmtree(new)
    old.rename(new)

    with open_root(tmp_path / "root") as host:
        # An empty folder is not what was lost.
        (tmp_path / "empty").mkdir()
        with pytest.raises(WorkspaceAlreadyExistsError):
            host.adopt_workspace("work", tmp_path / "empty")
        adopted = host.adopt_workspace("work", new, "found again")
        assert adopted.id == ids["work"]
        assert adopted.workspace.description == "found again"
        assert titles(adopted) == ["work"]


# -- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["folder", "above", ".ws", "db.sqlite"])
def test_a_link_in_the_place_of_a_workspace_is_not_followed(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None], place: str
) -> None:
    root, folder, victim = tmp_path / "root", tmp_path / "up" / "work", tmp_path / "in" / "work"
    ids = make(open_root, root, work=folder, victim=victim)
    closed(tmp_path)
    at, to = {
        "folder": (folder, victim),
        "above": (folder.parent, victim.parent),
        ".ws": (folder / ".ws", victim / ".ws"),
        "db.sqlite": (workspace_database(folder), workspace_database(victim)),
    }[place]
    at.rename(tmp_path / "aside")
    at.symlink_to(to)
    before = files_in(victim)

    with open_root(root) as host:
        for call in (
            host.get_workspace,
            host.sessions_for,
            host.database_of,
            host.delete_workspace,
        ):
            with pytest.raises(WorkspacePlaceError, match="link"):
                call(ids["work"])
        assert files_in(victim) == before
        assert titles(host.get_workspace(ids["victim"])) == ["victim"]
        # The entry can be removed, and the target of the link can be registered on purpose.
        host.unregister_workspace(ids["work"])
        with pytest.raises(WorkspaceAlreadyExistsError):
            host.adopt_workspace("work", folder)


def test_a_link_that_leads_to_nothing_is_refused_too(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None]
) -> None:
    folder = tmp_path / "work"
    ids = make(open_root, tmp_path / "root", work=folder)
    closed(tmp_path)
    folder.rename(tmp_path / "aside")
    folder.symlink_to(tmp_path / "nowhere")

    with open_root(tmp_path / "root") as host:
        for call in (host.get_workspace, host.delete_workspace):
            with pytest.raises(WorkspacePlaceError):
                call(ids["work"])
        moved = host.move_workspace(ids["work"], tmp_path / "aside")
        assert titles(host.get_workspace(moved.id)) == ["work"]
    assert not (tmp_path / "nowhere").exists()


def test_a_manager_that_is_opened_again_does_not_follow_a_link_either(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None]
) -> None:
    folder, victim = tmp_path / "work", tmp_path / "victim"
    make(open_root, tmp_path / "root", victim=victim)
    with open_root(tmp_path / "root") as host:
        work = host.create_workspace("work", path=folder)
        work.close()
        closed(folder)
        folder.rename(tmp_path / "aside")
        folder.symlink_to(victim)

        for call in (work.init, work.sessions.init, work.sessions.delete):
            with pytest.raises(DatabasePathError):
                call()
        with pytest.raises(WorkspacePlaceError):
            host.get_workspace(work.id)
    assert workspace_database(victim).exists()


def test_a_folder_whose_database_is_a_link_to_another_name_is_refused(
    tmp_path: Path, open_root: OpenRoot, pool: ConnectionPool
) -> None:
    with SessionManager(tmp_path / "plain.sqlite", pool=pool):
        pass
    (tmp_path / "work" / ".ws").mkdir(parents=True)
    workspace_database(tmp_path / "work").symlink_to(tmp_path / "plain.sqlite")

    with open_root(tmp_path / "root") as host:
        with pytest.raises(DatabasePathError):
            host.adopt_workspace("work", tmp_path / "work")
        assert host.list_workspaces() == []


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not worked in by descriptor there")
def test_a_folder_swapped_for_a_link_while_its_database_is_removed_harms_no_other(
    tmp_path: Path, open_root: OpenRoot, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the removal::

    thread   looks: no link . locks ............ removes .. in the folder that it has open
    another           folder → aside, link → victim
    """
    from mandrake_sessions.database.offline import removal

    folder, victim = tmp_path / "work", tmp_path / "victim"
    ids = make(open_root, tmp_path / "root", work=folder, victim=victim)
    remove_files = removal._remove_files

    def swap_and_remove(*given: Any) -> None:
        folder.rename(tmp_path / "aside")
        folder.symlink_to(victim)
        remove_files(*given)

    monkeypatch.setattr(removal, "_remove_files", swap_and_remove)
    with open_root(tmp_path / "root") as host:
        host.delete_workspace(ids["work"])
        assert titles(host.get_workspace(ids["victim"])) == ["victim"]
    assert list((tmp_path / "aside" / ".ws").iterdir()) == []


# -- damage ---------------------------------------------------------------------------------------


def damage_garbage(database: Path) -> None:
    database.write_bytes(GARBAGE)


def damage_cut(database: Path) -> None:
    os.truncate(database, database.stat().st_size - 5000)


def damage_pages(database: Path) -> None:
    with open(database, "r+b") as file:
        file.seek(100)
        file.write(os.urandom(8000))


def damage_format(database: Path) -> None:
    """A number that SQLite answers with an error about the statement."""
    with open(database, "r+b") as file:
        file.seek(44)
        file.write(b"\0\0\0\x09")


def damage_mark(database: Path) -> None:
    """The mark by which a database of this library is known."""
    with open(database, "r+b") as file:
        file.seek(68)
        file.write(b"\0\0\0\x09")


def damage_with_journal(database: Path) -> None:
    database.with_name("db.sqlite-journal").write_bytes(GARBAGE)


def damage_emptied(database: Path) -> None:
    os.truncate(database, 0)
    database.with_name("db.sqlite-wal").write_bytes(GARBAGE)


def damage_no_file(database: Path) -> None:
    database.unlink()
    database.with_name("db.sqlite-wal").write_bytes(GARBAGE)


@pytest.mark.parametrize(
    "damage",
    [
        damage_garbage,
        damage_cut,
        damage_pages,
        damage_format,
        damage_mark,
        damage_with_journal,
        damage_emptied,
        damage_no_file,
    ],
)
def test_a_damaged_workspace_can_be_deleted(
    tmp_path: Path,
    open_root: OpenRoot,
    closed: Callable[[Path], None],
    damage: Callable[[Path], None],
) -> None:
    folder = tmp_path / "work"
    ids = make(open_root, tmp_path / "root", work=folder)
    closed(tmp_path)
    damage(workspace_database(folder))
    (folder / "code.py").write_text("kept")
    (folder / ".ws" / "notes.txt").write_text("kept")

    with open_root(tmp_path / "root") as host:
        host.delete_workspace(ids["work"])
        assert host.list_workspaces() == []

    assert files_in(folder) == [".ws", ".ws/notes.txt", "code.py"]


@pytest.mark.parametrize("damage", [lambda database: None, damage_garbage, damage_no_file])
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_link_in_the_place_of_a_sidecar_file_goes_with_its_workspace(
    tmp_path: Path,
    open_root: OpenRoot,
    closed: Callable[[Path], None],
    suffix: str,
    damage: Callable[[Path], None],
) -> None:
    folder = tmp_path / "work"
    ids = make(open_root, tmp_path / "root", work=folder, other=None)
    closed(tmp_path)
    with open_root(tmp_path / "root") as host:
        other = workspace_database(host.get_workspace(ids["other"]).path)
        before = other.read_bytes()
        damage(workspace_database(folder))
        place = workspace_database(folder).with_name(f"db.sqlite{suffix}")
        place.unlink(missing_ok=True)
        place.symlink_to(other)

        host.delete_workspace(ids["work"])

        assert files_in(folder) == []
        assert other.read_bytes() == before
        sessions = host.get_workspace(ids["other"]).sessions
        assert [each.title for each in sessions.list_sessions()] == ["other"]


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_folder_but_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("kept")


def file_for_its_own_folder(folder: Path) -> None:
    shutil.rmtree(folder / ".ws")
    (folder / ".ws").write_text("kept")


def folder_for_its_file(folder: Path) -> None:
    workspace_database(folder).unlink()
    workspace_database(folder).mkdir()


def pipe_for_its_file(folder: Path) -> None:
    workspace_database(folder).unlink()
    os.mkfifo(workspace_database(folder))


@pytest.mark.parametrize(
    "lose",
    [
        no_folder,
        no_folder_but_a_file,
        file_for_its_own_folder,
        folder_for_its_file,
        pipe_for_its_file,
    ],
)
def test_the_entry_of_a_workspace_that_is_gone_is_taken_out(
    tmp_path: Path,
    open_root: OpenRoot,
    closed: Callable[[Path], None],
    lose: Callable[[Path], None],
) -> None:
    folder = tmp_path / "work"
    ids = make(open_root, tmp_path / "root", work=folder)
    closed(tmp_path)
    lose(folder)
    before = files_in(tmp_path)

    with open_root(tmp_path / "root") as host:
        host.delete_workspace(ids["work"])
        assert host.list_workspaces() == []
    closed(tmp_path)

    assert [each for each in files_in(tmp_path) if "root" not in each] == [
        each for each in before if "root" not in each
    ]


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_another_programs_database_stays_when_the_entry_goes(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None], mode: str
) -> None:
    folder = tmp_path / "work"
    ids = make(open_root, tmp_path / "root", work=folder)
    closed(tmp_path)
    database = workspace_database(folder)
    database.unlink()
    foreign = apsw.Connection(str(database))
    foreign.execute(f"PRAGMA journal_mode={mode}").fetchall()
    foreign.execute("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    foreign.close()
    before = database.read_bytes()

    with open_root(tmp_path / "root") as host:
        host.delete_workspace(ids["work"])
        assert host.list_workspaces() == []

    assert database.read_bytes() == before
    with pytest.raises(UnrecognizedDatabaseError):
        SessionManager(database).delete()
    assert database.read_bytes() == before


def test_a_plain_file_at_a_managers_path_is_not_deleted(
    tmp_path: Path, pool: ConnectionPool
) -> None:
    """Only a workspace's database is known to be one by its name."""
    (tmp_path / "notes.txt").write_bytes(GARBAGE)

    with pytest.raises(NotADatabaseError):
        SessionManager(tmp_path / "notes.txt", pool=pool).delete()

    assert (tmp_path / "notes.txt").read_bytes() == GARBAGE


HOLD = """
from mandrake_sessions import *
with SessionManager(sys.argv[1]) as sessions:
    sessions.create_session("held")
    send("open")
    receive()
"""


def test_a_damaged_workspace_that_another_process_has_open_waits(
    tmp_path: Path, open_root: OpenRoot, closed: Callable[[Path], None], start_child: Any
) -> None:
    folder = tmp_path / "work"
    ids = make(open_root, tmp_path / "root", work=folder)
    closed(tmp_path)
    database = workspace_database(folder)
    child = start_child(HOLD, database)
    assert child.receive() == "open"
    with open(database, "r+b") as file:
        file.write(GARBAGE)

    with open_root(tmp_path / "root") as host:
        with pytest.raises(DatabaseBusyError):
            host.delete_workspace(ids["work"], timeout=0.2)
        assert database.exists()
        child.stop()
        host.delete_workspace(ids["work"])
    assert not database.exists()


@pytest.mark.parametrize("note", ["", "garbage", "1:2:", "1:2:/nowhere/db.sqlite", "::relative"])
def test_a_damaged_note_of_the_registrar_keeps_no_workspace_closed(
    tmp_path: Path, open_root: OpenRoot, pool: ConnectionPool, note: str
) -> None:
    ids = make(open_root, tmp_path / "root", outside=tmp_path / "outside")
    with SessionManager(tmp_path / "root" / "db.sqlite", pool=pool) as system:
        values = {"key": f"registrar:{ids['outside']}", "value": note}
        file_handle(system.handle).transact(lambda tx: tx.run(sql.PUT_REGISTRAR, values))

    with open_root(tmp_path / "root") as host:
        assert titles(host.get_workspace(ids["outside"])) == ["outside"]
