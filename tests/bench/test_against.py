"""Two versions of the library side by side: the measured one, and the names of its figures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import against
from benchmarks.checkouts import Checkout, checkout, this_checkout
from benchmarks.measures import MEASURES
from benchmarks.process import PROJECT

SLOWED = """
import functools

_get_turn = SessionManager.get_turn

@functools.wraps(_get_turn)
def _slow(*args, **kwargs):
    for _ in range(50):
        _get_turn(*args, **kwargs)
    return _get_turn(*args, **kwargs)

SessionManager.get_turn = _slow
"""


@pytest.fixture
def slow(tmp_path: Path) -> Checkout:
    """A version whose ``get_turn`` takes fifty times as long as this one's."""
    ours = this_checkout()
    for folder in ("mandrake_sessions", "migrations"):
        shutil.copytree(ours.root / folder, tmp_path / folder)
    with (tmp_path / "mandrake_sessions" / "__init__.py").open("a") as package:
        package.write(SLOWED)
    return Checkout(tmp_path, ours.python)


def test_each_version_is_measured_with_its_own_library(slow: Checkout) -> None:
    found = against.compare(this_checkout(), slow, ["get-turn"], rounds=1, turns=2, seconds=0.05)
    for clock, time_of in against.CLOCKS.items():
        assert min(found["get-turn"].ratios(time_of)) > 5
        assert against.missed(found, 0.97, clock) == []


def test_a_version_below_the_limit_is_named(slow: Checkout) -> None:
    found = against.compare(slow, this_checkout(), ["get-turn"], rounds=1, turns=1, seconds=0.05)
    for clock in against.CLOCKS:
        (line,) = against.missed(found, 0.97, clock)
        assert line.startswith("get-turn: 0.0")


def test_every_measure_works_and_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    ours = this_checkout()
    found = against.compare(ours, ours, list(MEASURES), rounds=1, turns=1, seconds=0.01)
    against.print_all(found)
    printed = capsys.readouterr().out
    for name in MEASURES:
        assert printed.count(f"\n  {name}: ") == len(against.CLOCKS)


def test_an_unknown_measure_is_refused_before_anything_is_installed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        against.main(["HEAD", "--only", "appends"])
    assert "unknown: appends" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="git does not know this checkout")
@pytest.mark.timeout(600)
def test_another_commit_is_checked_out_and_installed() -> None:
    made = checkout("HEAD")
    assert (made.root / "mandrake_sessions" / "__init__.py").exists()
    assert (
        against.main(
            ["HEAD", "--only", "import", "--rounds", "1", "--turns", "1", "--at-least", "0.1"]
        )
        == 0
    )
    assert (
        against.main(
            ["HEAD", "--only", "import", "--rounds", "1", "--turns", "1", "--at-least", "100"]
        )
        == 1
    )
