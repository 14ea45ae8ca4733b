"""Events reach structlog, which nobody imports before there is one."""

import pytest
from structlog.testing import capture_logs

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
tell([sys.stderr.getvalue(), logs])
"""


def test_an_event_goes_to_structlog():
    with capture_logs() as logs:
        get_logger("a.module").warning("writes_refused", path="db.sqlite")

    assert logs == [{"event": "writes_refused", "path": "db.sqlite", "log_level": "warning"}]


def test_an_event_is_told_where_no_descriptor_is_free_to_read_structlog_with(start_child):
    child = start_child(NO_DESCRIPTOR_LEFT)
    told, logged_later = child.hear()
    child.finish()

    assert told == "database_not_closed path='db.sqlite' turn_ids=['one']\n"
    assert [entry["event"] for entry in logged_later] == ["database_not_closed"]
