"""The CrashRunner itself: it kills when it should, hears everything, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from kill_kit import ForkingRunner
from kits.waiting import SOON, until

from mandrake_sessions import InvalidArgumentError
from mandrake_sessions.testing import CrashRunner, Moment, WorkloadError, acknowledge, phase

COUNT = "crash_workloads:count"


@pytest.fixture(scope="module")
def forking() -> Iterator[ForkingRunner]:
    """Differs from a CrashRunner in how a life is started, which takes half a second there."""
    runner = ForkingRunner(COUNT, seed=1)
    yield runner
    runner.close()


@pytest.fixture
def runner(forking: ForkingRunner) -> ForkingRunner:
    return forking.use(COUNT)


def runs(pid: int) -> bool:
    """Whether there is such a process, and it is not dead and waiting to be asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_runner_kills_a_new_interpreter_after_so_many_acknowledgements() -> None:
    before = len(os.listdir("/proc/self/fd"))
    report = CrashRunner(COUNT).run(10**9, kill=Moment(acknowledged=100))
    assert len(os.listdir("/proc/self/fd")) == before

    assert report.was_killed
    assert report.exit_status == -9
    assert len(report.acknowledged) >= 100
    # Each that was written is there, in its order, and none by half.
    assert list(report.acknowledged) == list(range(len(report.acknowledged)))


def test_the_runner_kills_in_a_phase(runner: ForkingRunner) -> None:
    report = runner.run(50, kill=Moment(phase="waiting", within=0.05))

    assert report.was_killed
    assert report.phase == "waiting"
    assert [name for name, _ in report.phases] == ["counting", "waiting"]
    assert len(report.acknowledged) == 50
    assert report.seconds >= report.phases[1][1] >= report.phases[0][1] >= 0.0


def test_the_runner_kills_after_a_time(runner: ForkingRunner) -> None:
    report = runner.run(0, kill=Moment(after=0.05))

    assert report.was_killed
    assert report.seconds >= 0.05


def test_a_workload_that_ends_before_its_moment_was_not_killed(runner: ForkingRunner) -> None:
    report = runner.use("crash_workloads:end").run(3, kill=Moment(phase="never"))

    assert not report.was_killed
    assert report.exit_status == 0
    assert report.acknowledged == (0, 1, 2)
    assert report.phase is None


def test_the_runner_runs_a_script_with_its_arguments_and_environment(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom mandrake_sessions.testing import acknowledge\n"
        "print('not an acknowledgement')\n"
        "if __name__ == '__main__':\n    acknowledge([*sys.argv[1:], os.environ['PLACE']])\n"
    )
    runner = CrashRunner(script, environment={"PLACE": "here"})

    assert runner.run("text", 1, {"a": None}).acknowledged == (
        ["text", "1", '{"a": null}', "here"],
    )


def test_threads_and_forked_children_acknowledge_whole_lines(runner: ForkingRunner) -> None:
    report = runner.use("crash_workloads:many").run(kill=Moment(acknowledged=2000))

    assert report.was_killed
    assert {len(text) for _, text in report.acknowledged} == {2000}
    assert len({who for who, _ in report.acknowledged}) == 6


def test_the_whole_group_is_killed(runner: ForkingRunner) -> None:
    with runner.use("crash_workloads:with_children").start() as life:
        assert life.wait_for(Moment(acknowledged=2))
        pids = [life.pid, *life.acknowledged]
        assert all(runs(pid) for pid in pids)
        life.kill()
        life.finish()

    until(lambda: not any(runs(pid) for pid in pids))


def test_processes_that_a_workload_has_started_end_with_it(runner: ForkingRunner) -> None:
    report = runner.use("crash_workloads:leave_a_program").run()

    assert not report.was_killed
    (pid,) = report.acknowledged
    until(lambda: not runs(pid))


def test_the_end_of_the_block_kills_what_still_runs(runner: ForkingRunner) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with runner.start(10) as life:
        assert life.wait_for(Moment(phase="waiting"))

    assert not runs(life.pid)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_life_that_does_not_end_in_time_shows_where_it_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    began = monotonic()
    with pytest.raises(TimeoutError, match=r"after 2\.0 s"):
        CrashRunner(COUNT, timeout=2.0).run(5)

    assert monotonic() - began < SOON
    assert "Current thread" in capfd.readouterr().err


def test_a_moment_beyond_the_end_of_its_time_is_not_waited_for(runner: ForkingRunner) -> None:
    with pytest.raises(TimeoutError, match=r"in phase waiting, after 5 ack"):
        runner.use(COUNT, timeout=0.3).run(5, kill=Moment(after=100.0))


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ("crash_workloads:fail", "RuntimeError: as it should"),
        ("no_such_module:count", "No module named"),
        ("no_such_script.py", "No such file"),
        ("crash_workloads:end_badly", "status 3"),
        ("crash_workloads:too_long", "shorter than"),
    ],
)
def test_a_workload_that_fails_by_itself_is_an_error(
    runner: ForkingRunner, workload: str, message: str
) -> None:
    with pytest.raises(WorkloadError, match=message):
        runner.use(workload).run(kill=Moment(acknowledged=1))


def test_only_a_workload_acknowledges() -> None:
    with pytest.raises(RuntimeError, match="not the workload"):
        acknowledge()
    with pytest.raises(RuntimeError, match="not the workload"):
        phase("opening")


def test_a_moment_is_checked() -> None:
    with pytest.raises(InvalidArgumentError):
        Moment(after=-1.0)
    with pytest.raises(InvalidArgumentError):
        Moment(acknowledged=-1)
