"""The records are tested through both faces: the same bodies, the same statements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from async_face import AsyncFace

from mandrake_sessions import ConnectionPool, SessionManager

BOTH_FACES = {
    "test_round_records",
    "test_session_records",
    "test_streaming",
    "test_subclasses",
    "test_turn_records",
    "test_watching",
}
"""Where each test runs against the sync and the async face."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have the tests of these modules run twice."""
    if metafunc.module.__name__ in BOTH_FACES and "sessions" in metafunc.fixturenames:
        metafunc.parametrize("sessions", ["sync", "async"], indirect=True)


@pytest.fixture
def sessions(
    request: pytest.FixtureRequest, ready_path: Path, pool: ConnectionPool
) -> Iterator[SessionManager | AsyncFace]:
    """An open manager of a new database, the sync one or the async one."""
    if getattr(request, "param", "sync") == "sync":
        with SessionManager(ready_path, pool=pool) as manager:
            yield manager
    else:
        with AsyncFace(ready_path, pool=pool) as face:
            yield face
