"""Commands that only look write nothing with --read-only, wherever the files lie."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_kit import COMMAND, Ended, environment

from mandrake_sessions import ConnectionPool, MandrakeManager, NewTurn, Session

Run = Callable[..., Ended]
LOOKS = [
    ("sessions", "list"),
    ("sessions", "show", "ID"),
    ("workspaces", "list"),
    ("health",),
    ("backup", "TARGET"),
]


@pytest.fixture
def ended(root: Path) -> Session:
    """A session whose answer is complete, in a root that no process has open."""
    with ConnectionPool() as pool, MandrakeManager(root, pool=pool) as mandrake:
        sessions = mandrake.create_workspace("shop").sessions
        session = sessions.create_session("kept")
        sessions.record_round(session.id, "q", [NewTurn(content="a")])
    return session


def states_below(root: Path) -> dict[str, tuple[int, int]]:
    """Return the size and time of change of each file below a folder."""
    paths = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def line(look: tuple[str, ...], session: Session, target: Path) -> list[str]:
    """Return a command line, about the workspace where it takes one."""
    given = {"ID": session.id, "TARGET": str(target)}
    about = [] if look[0] == "workspaces" else ["-w", "shop"]
    return [*(given.get(each, each) for each in look), *about, "--read-only"]


@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
def test_a_command_that_looks_changes_nothing(
    run: Run, root: Path, ended: Session, tmp_path: Path, look: tuple[str, ...]
) -> None:
    before = states_below(root)
    done = run(*line(look, ended, tmp_path / "copy"))
    assert done.code == 0, done.stderr
    assert states_below(root) == before


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="only root may mount on Linux"
)
@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
def test_a_root_on_a_read_only_medium_is_looked_at(
    root: Path, ended: Session, tmp_path: Path, look: tuple[str, ...]
) -> None:
    mount = f"mount --bind {root} {root} && mount -o remount,ro,bind {root}"
    command = [*COMMAND, *line(look, ended, tmp_path / "copy")]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" "$@"', *command],
        env=environment(MANDRAKE_DIR=root),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
