"""A store in a process of its own: its work in a timed piece, and the reports of its failures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.messages import Append, Check, Checked, Done, Fill, Open, ReadOften, Run
from benchmarks.process import WorkerError, WorkerProcess
from benchmarks.rivals import BARE, OURS, OURS_ASYNC, look, rivals
from mandrake_sessions.options import Durability

PATIENCE = 60.0


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "workers.log"


@pytest.fixture(scope="module", params=[OURS, OURS_ASYNC, BARE])
def worker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A worker of several tests: what one has open is closed when the next opens its own."""
    worker = WorkerProcess(request.param, tmp_path_factory.mktemp("worker") / "workers.log")
    yield worker
    worker.kill()


def test_acknowledged_rows_are_found_again(worker: WorkerProcess, tmp_path: Path) -> None:
    opening = Open(folder=str(tmp_path), durability=Durability.FAST, files=2, conversations=4)
    assert len(worker.ask(opening, Done, PATIENCE).conversations) == 4
    run = worker.ask(Append(seconds=0.1), Run, PATIENCE)
    checked = worker.ask(Check(), Checked, PATIENCE)
    assert len(run.latencies) == checked.acknowledged == checked.found_again
    assert checked.acknowledged >= 4
    assert run.errors == {}
    assert 0.1 <= run.ended - run.began < PATIENCE


def test_a_reading_that_gives_too_little_is_a_failure(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    opening = Open(folder=str(tmp_path), durability=Durability.FAST, conversations=1)
    worker.ask(opening, Done, PATIENCE)
    worker.ask(Fill(exchanges=5), Done, PATIENCE)
    assert worker.ask(ReadOften(what="whole", expected=5, seconds=0.01), Run, PATIENCE).latencies
    with pytest.raises(WorkerError, match="read 5 where there are 6"):
        worker.ask(ReadOften(what="whole", expected=6, seconds=0.01), Run, PATIENCE)


def test_a_worker_that_is_gone_is_an_error_and_not_a_hang(log: Path, tmp_path: Path) -> None:
    worker = WorkerProcess(OURS, log)
    worker.facts()
    worker.kill()
    assert not worker.is_alive
    with pytest.raises(WorkerError, match="its process"):
        worker.ask(Open(folder=str(tmp_path), durability=Durability.FAST), Done, PATIENCE)


def test_a_worker_that_does_not_answer_is_killed(log: Path, tmp_path: Path) -> None:
    worker = WorkerProcess(OURS, log)
    opening = Open(folder=str(tmp_path), durability=Durability.FAST, conversations=1)
    worker.ask(opening, Done, PATIENCE)
    with pytest.raises(WorkerError, match="did not answer within"):
        worker.ask(Append(seconds=PATIENCE), Run, 0.2)
    assert not worker.is_alive


def test_a_missing_peer_is_named_with_what_it_lacks() -> None:
    absent = look("absent_store:AbsentStore")
    assert absent.name == "a peer that is absent"
    assert absent.missing == ("mandrake-sessions-has-no-such-peer",)


def test_every_store_is_known_without_its_peer() -> None:
    found = rivals()
    assert len({each.name for each in found.values()}) >= len(found) - 1  # ours comes twice
    assert found[OURS].missing == ()
