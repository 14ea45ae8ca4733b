"""Events reach structlog, which is not imported before the first one."""

import os
import subprocess
import sys
import typing

import pytest
import structlog
from structlog.testing import capture_logs

from mandrake_sessions import MandrakeManager, SessionManager, WorkspaceManager
from mandrake_sessions.aio import AsyncMandrakeManager, AsyncSessionManager, AsyncWorkspaceManager
from mandrake_sessions.log import get_logger

resource = pytest.importorskip("resource", reason="needs limits of a process")

NO_DESCRIPTOR_LEFT = """
import io, os, resource, sys
from mandrake_sessions.log import get_logger
assert "structlog" not in sys.modules
free = os.open(os.devnull, os.O_RDONLY)
os.close(free)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
sys.stderr = io.StringIO()
get_logger("a.module").error("database_not_closed", path="db.sqlite", turn_ids=["one"])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from structlog.testing import capture_logs
with capture_logs() as logs:
    get_logger("a.module").error("database_not_closed", path="db.sqlite")
send([sys.stderr.getvalue(), logs])
"""


FORKED_MEANWHILE = """
import os, signal, sys, threading, time
from mandrake_sessions import late_imports
from mandrake_sessions.log import get_logger
late_imports._PATIENCE = 60.0  # the import takes seconds on a machine under load
# It imports structlog and writes nothing: the child would inherit a lock of stdout for good.
thread = threading.Thread(target=lambda: get_logger("a.module").try_unbind("nothing"))
thread.start()
while "structlog" not in sys.modules:
    time.sleep(0.0005)
child = os.fork()
if not child:
    signal.alarm(60)
    get_logger("a.module").try_unbind("nothing")
    os._exit(0)
send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_for_the_import(start_child):
    child = start_child(FORKED_MEANWHILE)
    assert child.receive() == 0
    child.finish()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_logs_though_the_fork_could_not_wait_for_an_import(start_child):
    child = start_child(
        "import os, signal, threading\n"
        "from mandrake_sessions import late_imports\n"
        "from mandrake_sessions.log import get_logger\n"
        "late_imports._PATIENCE = 0.01\n"
        "importing, done = threading.Event(), threading.Event()\n"
        "def slow():\n"
        "    with late_imports.late_import:\n"
        "        importing.set()\n"
        "        done.wait()\n"
        "thread = threading.Thread(target=slow)\n"
        "thread.start()\n"
        "importing.wait()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(10)\n"
        "    os.dup2(2, 1)\n"
        "    get_logger('a.module').warning('writes_refused')\n"
        "    os._exit(0)\n"
        "send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "done.set()\n"
        "thread.join()\n"
    )
    assert child.receive() == 0
    child.finish()


@pytest.mark.parametrize(
    "manager",
    [
        SessionManager,
        MandrakeManager,
        WorkspaceManager,
        AsyncSessionManager,
        AsyncMandrakeManager,
        AsyncWorkspaceManager,
    ],
)
def test_hints_that_name_a_logger_can_be_asked_for(manager):
    assert "logger" in typing.get_type_hints(manager.__init__)


def test_an_event_is_printed_where_structlog_cannot_be_found(start_child):
    child = start_child(
        "import io, sys\n"
        "from mandrake_sessions.log import get_logger\n"
        "sys.path[:], sys.stderr = [], io.StringIO()\n"
        "get_logger('a.module').warning('metadata_unreadable', session_id='one')\n"
        "send(sys.stderr.getvalue())\n"
    )
    assert child.receive() == "metadata_unreadable session_id='one'\n"
    child.finish()


def test_an_event_that_cannot_be_written_disturbs_no_call(capsys):
    def broken(*_):
        raise BrokenPipeError

    before = structlog.get_config()
    structlog.configure(processors=[broken])
    try:
        get_logger("a.module").warning("writes_refused", path="db.sqlite")
    finally:
        structlog.configure(**before)

    assert capsys.readouterr().err == "writes_refused path='db.sqlite'\n"


def test_an_event_goes_to_structlog():
    with capture_logs() as logs:
        get_logger("a.module").warning("writes_refused", path="db.sqlite")

    assert logs == [{"event": "writes_refused", "path": "db.sqlite", "log_level": "warning"}]


def test_an_event_is_printed_where_no_descriptor_is_free_to_import_structlog(start_child):
    child = start_child(NO_DESCRIPTOR_LEFT)
    printed, logged_later = child.receive()
    child.finish()

    assert printed == "database_not_closed path='db.sqlite' turn_ids=['one']\n"
    assert [entry["event"] for entry in logged_later] == ["database_not_closed"]


HOST = """
import sys
from mandrake_sessions.log import get_logger
get_logger("a.module").warning("writes_refused", path="first")
from mandrake_sessions import SessionManager
{}
with SessionManager(sys.argv[1], logger=logger):
    get_logger("a.module").error("database_corrupt", path="second")
try:
    1 / 0
except ZeroDivisionError:
    secret = "a conversation"
    get_logger("a.module").exception("maintenance_failed")
print("an answer")
"""


@pytest.mark.parametrize(
    "logger",
    [
        "logger = None",
        "import structlog; logger = structlog.get_logger()",
        "import structlog; logger = structlog.get_logger().bind(host='any')",
    ],
    ids=["without a logger", "a logger", "a bound logger"],
)
def test_nothing_is_printed_to_stdout_while_the_host_configures_nothing(ready_path, logger):
    done = subprocess.run(
        [sys.executable, "-c", HOST.format(logger), ready_path],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert done.stdout == "an answer\n"
    for text in ("writes_refused", "path=first", "database_corrupt", "ZeroDivisionError"):
        assert text in done.stderr
    assert "a conversation" not in done.stderr
    if "logger = None" not in logger:
        assert "sessions_opened" in done.stderr
    if "bind" in logger:
        assert "host=any" in done.stderr


def test_a_later_configuration_of_the_host_takes_effect_at_once(ready_path):
    configured = (
        "import structlog; logger = structlog.get_logger(); "
        "structlog.configure(processors=[structlog.processors.JSONRenderer()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", HOST.format(configured), ready_path],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert "writes_refused" in done.stderr
    assert "writes_refused" not in done.stdout
    assert '{"path": "second", "event": "database_corrupt"}' in done.stdout.splitlines()
    assert "sessions_opened" in done.stdout


def test_an_event_without_a_stderr_is_dropped(start_child):
    child = start_child(
        "from mandrake_sessions.log import get_logger\n"
        "sys.stderr = None\n"
        "get_logger('a.module').warning('writes_refused')\n"
        "send('nothing before')\n"
    )
    assert child.receive() == "nothing before"
    child.finish()
