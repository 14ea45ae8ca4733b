"""The registry of workspaces, with several processes."""

import pytest
from kits.workspaces import id_of

from mandrake_sessions import DatabaseBusyError, MandrakeManager

REGISTER = """
from mandrake_sessions import *
with MandrakeManager(sys.argv[1]) as mandrake:
    send("ready")
    while (names := receive()) is not None:
        outcomes = []
        for name in names:
            try:
                work = mandrake.create_workspace(name)
                work.sessions.create_session("mine")
                outcomes.append(work.id)
            except WorkspaceAlreadyExistsError:
                outcomes.append(None)
        send(outcomes)
"""

HOLD = """
from mandrake_sessions import *
with MandrakeManager(sys.argv[1]) as mandrake:
    work = mandrake.get_workspace(sys.argv[2])
    session = work.sessions.create_session("of the child")
    send(session.id)
    while (asked := receive()) is not None:
        try:
            if asked == "close":
                work.close()
                default_pool().close()
            if asked == "write":
                work.sessions.create_session("written")
            if asked == "open and write":
                work.init().sessions.create_session("written")
            if asked == "get and write":
                mandrake.get_workspace(sys.argv[2]).sessions.create_session("written")
            if asked == "new and write":
                with MandrakeManager(sys.argv[1]) as other:
                    other.sessions_for(sys.argv[2]).create_session("written")
            send("done")
        except MandrakeSessionsError as error:
            send(type(error).__name__)
"""


def ask(child, value):
    child.send(value)
    return child.receive()


def finish(*children):
    for child in children:
        child.send(None)
    for child in children:
        child.finish()


@pytest.fixture
def registrars(tmp_path, start_child):
    """Two processes that open the same fresh registry at once."""
    children = [start_child(REGISTER, tmp_path / "root") for _ in range(2)]
    assert [child.receive() for child in children] == ["ready", "ready"]
    return children


def test_each_name_that_two_processes_want_is_registered_by_one_of_them(tmp_path, pool, registrars):
    names = [f"workspace-{number}" for number in range(12)]
    # They meet in the middle as well as at each name.
    for child, order in zip(registrars, (names, names[::-1]), strict=True):
        child.send(order)
    first, second = registrars[0].receive(), registrars[1].receive()[::-1]
    finish(*registrars)

    assert all((a is None) is not (b is None) for a, b in zip(first, second, strict=True))
    winners = {name: a or b for name, a, b in zip(names, first, second, strict=True)}
    with MandrakeManager(tmp_path / "root", pool=pool) as mandrake:
        assert {each.name: each.id for each in mandrake.list_workspaces()} == winners
        for id in winners.values():
            assert mandrake.get_workspace(id).sessions.count_sessions() == 1


def test_two_processes_register_different_names_at_once(tmp_path, pool, registrars):
    for letter, child in zip("ab", registrars, strict=True):
        child.send([f"{letter}-{number}" for number in range(8)])
    made = [child.receive() for child in registrars]
    finish(*registrars)

    with MandrakeManager(tmp_path / "root", pool=pool) as mandrake:
        listed = mandrake.list_workspaces()
        assert [each.name for each in listed] == sorted(
            f"{letter}-{number}" for letter in "ab" for number in range(8)
        )
        assert {each.id for each in listed} == {*made[0], *made[1]}


def test_delete_removes_nothing_while_another_process_has_the_workspace_open(
    tmp_path, pool, start_child
):
    with MandrakeManager(tmp_path / "root", pool=pool) as mandrake:
        work = mandrake.create_workspace("work")
        child = start_child(HOLD, tmp_path / "root", work.id)
        session_id = child.receive()

        with pytest.raises(DatabaseBusyError) as caught:
            mandrake.delete_workspace(id_of(work), timeout=0.2)

        assert caught.value.waited >= 0.2
        assert ask(child, "write") == "done"
        assert mandrake.find_workspace("work") is not None
        again = mandrake.get_workspace(id_of(work))
        assert again.sessions.get_session(session_id).title == "of the child"
        assert again.sessions.count_sessions() == 2
        finish(child)


@pytest.mark.parametrize("attempt", ["write", "open and write", "get and write", "new and write"])
def test_no_write_of_another_process_is_accepted_after_a_deletion(
    tmp_path, pool, start_child, attempt
):
    with MandrakeManager(tmp_path / "root", pool=pool) as mandrake:
        work = mandrake.create_workspace("work")
        child = start_child(HOLD, tmp_path / "root", work.id)
        child.receive()
        assert ask(child, "close") == "done"

        mandrake.delete_workspace(id_of(work), timeout=120)

        assert ask(child, attempt).endswith("Error")
        assert not work.sessions.path.exists()
        assert mandrake.list_workspaces() == []
        finish(child)


def test_delete_loses_no_row_that_another_process_writes_meanwhile(tmp_path, pool, start_child):
    """Either the write is stored in a database that stays, or it is refused: never lost."""
    with MandrakeManager(tmp_path / "root", pool=pool) as mandrake:
        work = mandrake.create_workspace("work")
        child = start_child(HOLD, tmp_path / "root", work.id)
        child.receive()
        for _ in range(10):
            assert ask(child, "close") == "done"
            child.send("open and write")
            try:
                mandrake.delete_workspace(id_of(work), timeout=0.05)
            except DatabaseBusyError:
                assert child.receive() == "done"
                continue
            assert child.receive().endswith("Error")
            assert not work.sessions.path.exists()
            break
        else:
            assert ask(child, "close") == "done"
            count = mandrake.get_workspace(id_of(work)).sessions.count_sessions()
            assert count == 11
        finish(child)
