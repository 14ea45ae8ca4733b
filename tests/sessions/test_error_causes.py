"""What an error says of its cause: no descriptor, no permission, no home, no temporary folder."""

import os
import subprocess
import sys

import pytest

from mandrake_sessions import (
    ConnectionPool,
    DatabasePathError,
    ForkedPoolError,
    MandrakeManager,
    NoMemoryError,
    SessionManager,
    TooManyFilesError,
    diagnose,
)
from mandrake_sessions.database.error_codes import translate_os

IN_FEW_DESCRIPTORS = """
import os, resource
from mandrake_sessions import *
first = SessionManager(sys.argv[1]).init()
session = first.create_session("kept")
round_ = first.create_round(session.id, "q")
pool = default_pool()
limit = len(os.listdir("/proc/self/fd")) + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    second = SessionManager(sys.argv[2], pool=ConnectionPool()).init()
    with second.stream_turn(second.create_round(second.create_session("x").id, "q").response.id):
        second.render_session_history(second.list_sessions()[0].id)
except MandrakeSessionsError as error:
    send(type(error).__name__)
else:
    send("opened")
first.create_session("also kept")
send(sorted(each.title for each in first.list_sessions()))
"""


@pytest.mark.parametrize("free", range(9))
def test_the_error_says_that_no_descriptor_is_left_and_open_files_keep_working(
    ready_database, tmp_path, start_child, free
):
    first = ready_database.lay(tmp_path / "first.sqlite")
    second = ready_database.lay(tmp_path / "second.sqlite")
    child = start_child(IN_FEW_DESCRIPTORS, first, second, free)

    assert child.receive() in ("TooManyFilesError", "opened")
    assert child.receive() == ["also kept", "kept"]


LATE_PARTS_WITHOUT_DESCRIPTORS = """
import resource
from mandrake_sessions import SessionManager, TooManyFilesError
sessions = SessionManager(sys.argv[1]).init()
sessions.create_session("kept")
calls = sessions.health, lambda: sessions.backup(sys.argv[2])
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
for call in calls:
    try:
        call()
    except TooManyFilesError as error:
        send(str(error.path))
    else:
        send("done")
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
send(sessions.health().status.name)
send(str(sessions.backup(sys.argv[2])))
"""


def test_a_part_that_no_descriptor_is_left_to_import_is_imported_by_the_next_call(
    ready_path, tmp_path, start_child
):
    child = start_child(LATE_PARTS_WITHOUT_DESCRIPTORS, ready_path, tmp_path / "copy.sqlite")

    assert [child.receive() for _ in range(2)] == [str(ready_path)] * 2
    assert child.receive() == "OK"
    assert child.receive() == str(tmp_path / "copy.sqlite")
    child.finish()


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        ("EMFILE", TooManyFilesError, "ulimit"),
        ("ENFILE", TooManyFilesError, "system"),
        ("ENOMEM", NoMemoryError, "memory"),
    ],
)
def test_each_lack_of_a_resource_has_its_own_error(tmp_path, number, kind, said):
    import errno

    found = translate_os(OSError(getattr(errno, number), "x"), tmp_path)

    assert type(found) is kind
    assert said in found.message


def run_without_home(program: str, *, uid: int = 54321) -> str:
    """Run a program as a user that the system does not know, without HOME."""
    if os.geteuid() != 0:
        pytest.skip("only root becomes a user without a home")
    start = (
        f"import os, sys; from mandrake_sessions import *; os.setuid({uid})\n"
        "os.environ.pop('HOME', None); os.environ.pop('MANDRAKE_DIR', None)\n"
    )
    return subprocess.check_output([sys.executable, "-c", start + program], text=True).strip()


@pytest.mark.parametrize(
    "call",
    [
        "MandrakeManager()",
        "MandrakeManager('~/x')",
        "SessionManager('~/c.sqlite').init()",
        "WorkspaceManager('~/w')",
        "diagnose('~')",
    ],
)
def test_the_error_says_that_there_is_no_home_folder(call):
    said = run_without_home(
        f"try: {call}\nexcept MandrakeSessionsError as e: print(type(e).__name__, e)"
    )

    assert said.startswith("DatabasePathError")
    assert "HOME" in said


def test_a_root_that_is_named_needs_no_home(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("MANDRAKE_DIR", str(tmp_path))
    with ConnectionPool() as pool, MandrakeManager(pool=pool) as mandrake:
        assert mandrake.root == tmp_path


def test_a_diagnosis_says_that_there_is_no_temporary_folder(ready_path, tmp_path):
    program = (
        "import sys, tempfile\n"
        "from mandrake_sessions import *\n"
        "tempfile._candidate_tempdir_list = lambda: ['/nowhere']\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "sessions.create_session()\n"
        "sessions.backup(sys.argv[2])\n"
        "print(sessions.health(HealthLevel.FULL).status, flush=True)\n"
        "import os; os._exit(0)\n"
    )
    command = [sys.executable, "-c", program, str(ready_path), str(tmp_path / "copy")]
    assert subprocess.check_output(command, text=True).strip() == "ok"
    # Killed with a log, so a private copy is read.
    look = (
        "import sys, tempfile\n"
        "from mandrake_sessions import *\n"
        "tempfile._candidate_tempdir_list = lambda: ['/nowhere']\n"
        "for check in diagnose(sys.argv[1]).checks:\n"
        "    if check.status != 'ok': print(check.name, check.detail, check.advice)\n"
    )
    said = subprocess.check_output([sys.executable, "-c", look, str(ready_path)], text=True)
    assert "temporary" in said
    assert "TMPDIR" in said
    assert "restore" not in said


def test_the_error_after_a_fork_names_the_calls_that_help():
    assert "close()" in ForkedPoolError.default_message
    assert "init()" in ForkedPoolError.default_message


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_manager_works_in_a_child_after_close_and_init(ready_path, pool):
    with SessionManager(ready_path, pool=pool) as sessions:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                sessions.count_sessions()
            except ForkedPoolError:
                sessions.close()
                os.write(writer, str(sessions.init().count_sessions()).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        assert os.read(reader, 100) == b"0"
        os.close(reader)


def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    folder = tmp_path
    program = (
        "import os, sys; from mandrake_sessions import *\n"
        "os.mkdir('/tmp/%s' % sys.argv[1], 0o755)\n"
        "os.setuid(54321)\n"
        "try: SessionManager('/tmp/%s/c.sqlite' % sys.argv[1]).init()\n"
        "except MandrakeSessionsError as e: print(type(e).__name__, e.message)\n"
    )
    name = f"mandrake-{os.getpid()}-{folder.name}"
    said = subprocess.check_output([sys.executable, "-c", program, name], text=True)
    os.rmdir(f"/tmp/{name}")

    assert said.startswith("DatabaseFolderError")
    assert "no permission" in said
    assert name in said


def test_a_path_without_a_home_is_a_path_error():
    assert issubclass(DatabasePathError, ValueError) is False
    assert diagnose("/nowhere/x").status.value == "failed"


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_link_in_the_place_of_a_log_is_named(ready_path, pool, suffix):
    link = ready_path.with_name(f"{ready_path.name}{suffix}")
    link.symlink_to(ready_path.with_name("elsewhere"))
    with pytest.raises(DatabasePathError, match=f"{link.name} is a link"):
        SessionManager(ready_path, pool=pool).init()
    link.unlink()
    with SessionManager(ready_path, pool=pool) as sessions:
        assert sessions.count_sessions() == 0
