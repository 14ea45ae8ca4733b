"""The system's manager, its registry, and the workspaces."""

import threading
from pathlib import Path

import pytest
from kits.waiting import SOON
from kits.workspaces import id_of

from mandrake_sessions import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseFolderError,
    DatabaseMissingError,
    DatabaseOpenError,
    DatabaseOptions,
    InvalidArgumentError,
    MandrakeManager,
    MandrakeSessionsError,
    NotADatabaseError,
    NotInitializedError,
    SessionManager,
    WorkspaceAlreadyExistsError,
    WorkspaceManager,
    WorkspaceNotFoundError,
)
from mandrake_sessions.records import workspaces


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def mandrake(root, pool):
    with MandrakeManager(root, pool=pool) as manager:
        yield manager


def test_the_system_and_each_workspace_have_sessions_of_their_own(root, mandrake):
    work = mandrake.create_workspace("work")
    system_session = mandrake.sessions.create_session("system")
    work_session = work.sessions.create_session("work")

    assert isinstance(mandrake.sessions, SessionManager)
    assert isinstance(work, WorkspaceManager)
    assert mandrake.sessions.list_sessions() == [system_session]
    assert work.sessions.list_sessions() == [work_session]
    assert mandrake.sessions.path == root / "db.sqlite"
    assert work.sessions.path == root / "workspaces" / "work" / ".ws" / "db.sqlite"


def test_making_a_manager_opens_nothing(root, pool):
    manager = MandrakeManager(root, pool=pool)

    assert not root.exists()
    for call in (
        manager.list_workspaces,
        lambda: manager.create_workspace("x"),
        lambda: manager.find_workspace("x"),
        lambda: manager.get_workspace("x"),
        lambda: manager.unregister_workspace("x"),
        lambda: manager.delete_workspace("x"),
        lambda: manager.sessions_for("x"),
    ):
        with pytest.raises(NotInitializedError):
            call()
    assert not (root / "workspaces").exists()


def test_closing_closes_every_workspace_and_works_again(root, pool):
    manager = MandrakeManager(root, pool=pool).init()
    work = manager.create_workspace("work")
    session = work.sessions.create_session("kept")

    manager.close()
    manager.close()

    assert pool.stats().handles == 0
    with pytest.raises(NotInitializedError):
        work.sessions.count_sessions()
    with manager:
        assert manager.get_workspace(id_of(work)).sessions.get_session(session.id) == session


def test_a_workspace_that_cannot_be_closed_keeps_no_other_open(root, pool, monkeypatch):
    manager = MandrakeManager(root, pool=pool).init()
    first, second = (manager.create_workspace(name) for name in ("a", "b"))
    close = first.close

    def failing():
        close()
        raise DatabaseError("It failed.")

    monkeypatch.setattr(first, "close", failing)
    with pytest.raises(ExceptionGroup) as caught:
        manager.close()

    assert [str(each) for each in caught.value.exceptions] == ["It failed."]
    assert pool.stats().handles == 0
    assert not second.sessions.is_initialized


@pytest.mark.parametrize(
    ("variable", "expected"), [(None, "home/.mandrake"), ("", "home/.mandrake"), ("dir", "dir")]
)
def test_the_default_root_is_taken_from_the_environment_or_the_home_folder(
    tmp_path, monkeypatch, pool, variable, expected
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MANDRAKE_DIR", raising=False)
    if variable is not None:
        monkeypatch.setenv("MANDRAKE_DIR", variable and str(tmp_path / variable))

    with MandrakeManager(pool=pool) as manager:
        assert manager.sessions.path == tmp_path / expected / "db.sqlite"
        # One that is given is stronger than the environment.
        assert MandrakeManager(tmp_path / "given").root == tmp_path / "given"


def test_a_tilde_is_expanded_everywhere(tmp_path, monkeypatch, pool):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "adopted").mkdir()
    monkeypatch.setenv("MANDRAKE_DIR", "~/from-environment")
    assert MandrakeManager().root == tmp_path / "from-environment"

    with MandrakeManager("~/root", pool=pool) as manager:
        assert manager.root == tmp_path / "root"
        made = manager.create_workspace("made", path="~/made")
        adopted = manager.adopt_workspace("adopted", "~/adopted")
        assert made.sessions.path == tmp_path / "made" / ".ws" / "db.sqlite"
        assert adopted.sessions.path == tmp_path / "adopted" / ".ws" / "db.sqlite"
        assert [each.path for each in manager.list_workspaces()] == [
            str(tmp_path / "adopted"),
            str(tmp_path / "made"),
        ]
    assert WorkspaceManager("~/made").path == tmp_path / "made"


def test_a_relative_root_is_the_same_wherever_the_process_goes(tmp_path, pool, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (tmp_path / "link").symlink_to(there)
    monkeypatch.chdir(here)
    monkeypatch.setenv("MANDRAKE_DIR", "by-default")
    manager, by_default = MandrakeManager("root", pool=pool), MandrakeManager(pool=pool)
    workspace = WorkspaceManager("workspace", pool=pool)
    # Not folded: what ".." is depends on where the link leads to.
    behind_link = MandrakeManager("../link/../behind", pool=pool)

    monkeypatch.chdir(there)
    with manager:
        work = manager.create_workspace("work")
        elsewhere = manager.create_workspace("elsewhere", path="elsewhere")
        assert manager.root == here / "root"
        assert work.path == here / "root" / "workspaces" / "work"
        assert elsewhere.path == there / "elsewhere"
        monkeypatch.chdir(tmp_path)
        manager.delete_workspace(id_of(work))
        assert list((here / "root" / "workspaces").iterdir()) == []
    assert by_default.root == here / "by-default"
    assert workspace.path == here / "workspace"
    assert behind_link.sessions.path == tmp_path / "behind" / "db.sqlite"


def test_opening_a_relative_root_raises_when_the_working_directory_is_gone(
    tmp_path, pool, monkeypatch
):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    for manager in (MandrakeManager("root", pool=pool), WorkspaceManager("work", pool=pool)):
        with pytest.raises(DatabaseOpenError):
            manager.init()
    with MandrakeManager(tmp_path / "root", pool=pool) as manager:
        assert manager.list_workspaces() == []


@pytest.mark.parametrize("name", ["a", "7", "A-b_C", "x" * 64, "0-"])
def test_valid_names_are_accepted(mandrake, name):
    assert mandrake.create_workspace(name).workspace.name == name


@pytest.mark.parametrize(
    "name", ["", "-a", "_a", "a b", "a.b", "a/b", "..", "x" * 65, "\u00e9", "a\n", "\u0661", "a\0"]
)
def test_invalid_names_raise_and_leave_nothing(tmp_path, root, mandrake, name):
    for call in (
        lambda: mandrake.create_workspace(name),
        lambda: mandrake.adopt_workspace(name, tmp_path),
        lambda: mandrake.find_workspace(name),
    ):
        with pytest.raises(InvalidArgumentError):
            call()

    assert mandrake.list_workspaces() == []
    assert not (root / "workspaces").exists()


def test_duplicates_raise_and_leave_nothing(tmp_path, mandrake):
    work = mandrake.create_workspace("work", "the first", tmp_path / "work")
    session = work.sessions.create_session("kept")
    (tmp_path / "link").symlink_to(tmp_path / "work")

    for name, path in (
        ("work", None),
        ("work", tmp_path / "other"),
        ("other", tmp_path / "work"),
        ("other", tmp_path / "link"),
        ("other", tmp_path / "x" / ".." / "work"),
    ):
        with pytest.raises(WorkspaceAlreadyExistsError):
            mandrake.create_workspace(name, path=path)
    with pytest.raises(WorkspaceAlreadyExistsError):
        mandrake.adopt_workspace("other", tmp_path / "link")

    assert mandrake.list_workspaces() == [work.workspace]
    assert work.sessions.list_sessions() == [session]
    assert not (tmp_path / "other").exists()


def test_the_error_of_a_duplicate_names_the_existing_workspace(tmp_path, mandrake):
    first = mandrake.create_workspace("first", path=tmp_path / "first")
    second = mandrake.create_workspace("second", path=tmp_path / "second")
    # With conversations and without: it is registered either way.
    first.sessions.create_session("kept")

    for name, path, there, clash in (
        ("first", None, first, "name"),
        ("other", tmp_path / "first", first, "path"),
        ("other", tmp_path / "second", second, "path"),
        ("second", tmp_path / "first", second, "name"),
    ):
        with pytest.raises(WorkspaceAlreadyExistsError, match=f"with this {clash}") as caught:
            mandrake.create_workspace(name, path=path)
        assert mandrake.get_workspace(caught.value.id) is there


def test_a_duplicate_is_refused_also_when_its_database_is_damaged(mandrake):
    work = mandrake.create_workspace("work")
    mandrake.get_workspace(id_of(work)).close()
    work.sessions.path.write_bytes(b"no database, and longer than a header of one" * 30)

    with pytest.raises(WorkspaceAlreadyExistsError) as caught:
        mandrake.create_workspace("work")

    assert caught.value.id == work.id


def test_a_new_workspace_shows_no_conversations_of_an_earlier_one(mandrake, pool):
    work = mandrake.create_workspace("work")
    session = work.sessions.create_session("of the first")
    mandrake.unregister_workspace(id_of(work))

    with pytest.raises(WorkspaceAlreadyExistsError, match="adopt_workspace") as caught:
        mandrake.create_workspace("work")

    assert caught.value.id is None
    assert mandrake.list_workspaces() == []
    assert pool.stats().handles == 1
    adopted = mandrake.adopt_workspace("work", work.path)
    assert adopted.sessions.list_sessions() == [session]


@pytest.mark.parametrize("left", ["database", "empty file"])
def test_the_next_attempt_uses_the_files_that_a_creation_has_left(root, pool, mandrake, left):
    folder = root / "workspaces" / "work"
    if left == "database":
        with WorkspaceManager(folder, pool=pool):
            pass
    else:
        (folder / ".ws").mkdir(parents=True)
        (folder / ".ws" / "db.sqlite").touch()

    work = mandrake.create_workspace("work")

    assert work.sessions.path == folder / ".ws" / "db.sqlite"
    assert work.sessions.count_sessions() == 0


def test_the_error_after_a_crash_between_registry_and_file_names_the_entry(root, pool, mandrake):
    work = mandrake.create_workspace("work")
    mandrake.unregister_workspace(id_of(work))
    # As the crash leaves it: an entry that was never opened, and no file.
    entry = mandrake._transact(
        workspaces.register_workspace(mandrake._registry(), "work", str(work.path)),
        "create_workspace",
    )
    work.sessions.delete()

    with pytest.raises(WorkspaceAlreadyExistsError) as caught:
        mandrake.create_workspace("work")

    assert caught.value.id == entry.id
    assert mandrake.get_workspace(caught.value.id).sessions.count_sessions() == 0


def test_a_name_is_free_again_when_its_database_could_not_be_created(tmp_path, mandrake):
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseFolderError):
        mandrake.create_workspace("work", path=tmp_path / "file")
    assert mandrake.list_workspaces() == []
    garbage = tmp_path / "folder" / ".ws" / "db.sqlite"
    garbage.parent.mkdir(parents=True)
    garbage.write_bytes(b"no database, and longer than a header of one" * 30)
    for register in (mandrake.create_workspace, mandrake.adopt_workspace):
        with pytest.raises(NotADatabaseError):
            register("work", path=tmp_path / "folder")

    assert mandrake.list_workspaces() == []
    assert mandrake.create_workspace("work").sessions.count_sessions() == 0


def test_get_workspace_returns_the_same_initialised_manager_each_time(root, pool, in_threads):
    with MandrakeManager(root, pool=pool) as mandrake:
        work = mandrake.create_workspace("work")
        assert mandrake.get_workspace(id_of(work)) is work
        work.close()
        assert mandrake.get_workspace(id_of(work)) is work
        assert work.sessions.is_initialized

    with MandrakeManager(root, pool=pool) as mandrake:
        first, *others = in_threads(8, lambda _: mandrake.get_workspace(id_of(work)))
        assert all(each is first for each in others)
        assert first.sessions.is_initialized
        with pytest.raises(WorkspaceNotFoundError):
            mandrake.get_workspace("missing")


def test_workspaces_are_listed_and_found_by_name(mandrake):
    names = ["beta", "alpha", "Gamma"]
    made = {name: mandrake.create_workspace(name, f"about {name}").workspace for name in names}

    assert mandrake.list_workspaces() == [made[name] for name in sorted(names)]
    assert mandrake.find_workspace("alpha") == made["alpha"]
    assert mandrake.find_workspace("missing") is None
    assert made["alpha"].description == "about alpha"
    assert made["alpha"].last_opened_at is not None


def test_unregister_closes_the_workspace_and_keeps_its_files(root, mandrake):
    work = mandrake.create_workspace("work")
    session = work.sessions.create_session("kept")
    entry = work.workspace

    assert mandrake.unregister_workspace(id_of(work)) == entry

    assert not work.sessions.is_initialized
    assert mandrake.list_workspaces() == []
    for call in (mandrake.get_workspace, mandrake.unregister_workspace, mandrake.delete_workspace):
        with pytest.raises(WorkspaceNotFoundError):
            call(entry.id)
    again = mandrake.adopt_workspace("renamed", root / "workspaces" / "work")
    assert again.sessions.list_sessions() == [session]


def test_adopt_takes_a_directory_with_what_it_holds(tmp_path, pool, mandrake):
    with pytest.raises(DatabaseFolderError):
        mandrake.adopt_workspace("work", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with WorkspaceManager(tmp_path / "there", pool=pool) as there:
        session = there.sessions.create_session("kept")
    (tmp_path / "empty").mkdir()

    assert mandrake.adopt_workspace("a", tmp_path / "there").sessions.list_sessions() == [session]
    assert mandrake.adopt_workspace("b", tmp_path / "empty").sessions.count_sessions() == 0


def test_delete_removes_the_database_and_its_entry(root, mandrake):
    work = mandrake.create_workspace("work")
    work.sessions.create_session("gone")
    entry = work.workspace

    assert mandrake.delete_workspace(id_of(work)) == entry

    assert list((root / "workspaces").iterdir()) == []
    assert mandrake.list_workspaces() == []
    again = mandrake.create_workspace("work")
    assert again.id != entry.id
    assert again.sessions.count_sessions() == 0


def test_delete_keeps_files_that_are_not_of_the_workspace(tmp_path, mandrake):
    folder = tmp_path / "project"
    work = mandrake.create_workspace("work", path=folder)
    (folder / "code.py").write_text("kept")
    (folder / ".ws" / "notes.txt").write_text("kept")

    mandrake.delete_workspace(id_of(work))

    names = sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))
    assert names == [".ws", ".ws/notes.txt", "code.py"]
    empty = mandrake.create_workspace("empty", path=tmp_path / "empty")
    mandrake.delete_workspace(empty.id)
    assert list((tmp_path / "empty").iterdir()) == []


def test_delete_removes_nothing_while_another_manager_has_the_workspace_open(pool, mandrake):
    work = mandrake.create_workspace("work")
    session = work.sessions.create_session("kept")
    with SessionManager(work.sessions.path, pool=pool) as other:
        with pytest.raises(DatabaseBusyError):
            mandrake.delete_workspace(id_of(work), timeout=0)
        assert other.get_session(session.id) == session

    assert mandrake.find_workspace("work") is not None
    assert mandrake.get_workspace(id_of(work)).sessions.get_session(session.id) == session


def test_delete_waits_as_long_as_the_managers_own_options_say(root, pool):
    options = DatabaseOptions(busy_timeout=0.5)
    assert pool.options.database.busy_timeout > SOON
    with MandrakeManager(root, pool=pool, options=options) as mandrake:
        work = mandrake.create_workspace("work")
        with (
            SessionManager(work.sessions.path, pool=pool),
            pytest.raises(DatabaseBusyError) as caught,
        ):
            mandrake.delete_workspace(id_of(work))
        assert 0.5 <= caught.value.waited < SOON


def test_a_delete_that_failed_leaves_the_same_object(pool, mandrake):
    work = mandrake.create_workspace("work")
    with (
        SessionManager(work.sessions.path, pool=pool),
        pytest.raises(DatabaseBusyError),
    ):
        mandrake.delete_workspace(id_of(work), timeout=0)

    assert mandrake.get_workspace(id_of(work)) is work


def test_delete_waits_until_another_manager_closes_the_workspace(pool, mandrake, monkeypatch):
    import time

    work = mandrake.create_workspace("work")
    other = SessionManager(work.sessions.path, pool=pool).init()
    waits, sleep = threading.Event(), time.sleep

    def noting(seconds):
        waits.set()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noting)
    deletion = threading.Thread(target=mandrake.delete_workspace, args=(work.id,))
    deletion.start()
    assert waits.wait(60)
    assert work.sessions.path.exists()
    session = other.create_session("acknowledged before it was deleted")
    assert other.get_session(session.id) == session

    other.close()
    deletion.join()

    assert not work.sessions.path.exists()
    assert mandrake.list_workspaces() == []


def test_no_write_is_accepted_after_a_deletion(root, tmp_path, pool, mandrake):
    work = mandrake.create_workspace("work")
    path = work.sessions.path
    sessions = work.sessions
    with MandrakeManager(root, pool=pool) as second:
        held_before = second.get_workspace(id_of(work))
        held_before.close()
        mandrake.delete_workspace(id_of(work))

        for attempt in (
            lambda: sessions.create_session("lost"),
            lambda: sessions.init().create_session("lost"),
            lambda: work.init().sessions.create_session("lost"),
            lambda: held_before.sessions.create_session("lost"),
            lambda: held_before.init().sessions.create_session("lost"),
            lambda: second.get_workspace(id_of(work)).sessions.create_session("lost"),
            lambda: second.sessions_for(id_of(work)).create_session("lost"),
            lambda: mandrake.sessions_for(id_of(work)).create_session("lost"),
        ):
            with pytest.raises(MandrakeSessionsError):
                attempt()

    assert not path.exists()


def test_a_missing_database_of_a_workspace_is_not_created_again(root, pool):
    with MandrakeManager(root, pool=pool) as mandrake:
        work = mandrake.create_workspace("work")
        path = work.sessions.path
    path.unlink()

    with MandrakeManager(root, pool=pool) as mandrake:
        with pytest.raises(DatabaseMissingError):
            mandrake.get_workspace(id_of(work))
        assert not path.exists()
        # It can be taken out of the registry all the same.
        mandrake.delete_workspace(id_of(work))
        assert mandrake.list_workspaces() == []


def test_sessions_for_returns_the_manager_of_the_system_or_of_a_workspace(mandrake):
    work = mandrake.create_workspace("work")

    assert mandrake.sessions_for(None) is mandrake.sessions
    assert mandrake.sessions_for(id_of(work)) is work.sessions
    with pytest.raises(WorkspaceNotFoundError):
        mandrake.sessions_for("missing")


def test_hosts_share_one_pool(root, pool):
    with (
        MandrakeManager(root, pool=pool) as first,
        MandrakeManager(root, pool=pool) as second,
    ):
        work = first.create_workspace("work")
        assert second.get_workspace(id_of(work)) is not work
        assert pool.stats().handles == 4
        assert len(pool.stats().databases) == 2
        assert {each.path for each in pool.stats().databases} == {
            Path(root / "db.sqlite"),
            work.sessions.path,
        }


def test_an_empty_root_is_refused():
    """It comes of a variable that is not set, and would be wherever the process is."""
    for make in (MandrakeManager, WorkspaceManager):
        with pytest.raises(InvalidArgumentError):
            make("")
