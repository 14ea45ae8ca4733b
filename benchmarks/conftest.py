"""The places of databases and results, and the durations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.bench import Bench
from benchmarks.contestant import Workers
from benchmarks.machine import describe, is_in_memory, usual_folder, versions
from benchmarks.pace import FEWEST_ROUNDS, PACES, Pace
from benchmarks.results import Results

FOLDER_VARIABLE = "MANDRAKE_BENCH_DIR"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mandrake")
    group.addoption(
        "--databases-in",
        metavar="DIR",
        default=os.environ.get(FOLDER_VARIABLE),
        help=f"a folder on the disk to measure; {FOLDER_VARIABLE} says it too",
    )
    group.addoption(
        "--rounds",
        type=int,
        help=f"rounds of each comparison, at least {FEWEST_ROUNDS}",
    )
    group.addoption("--seconds", type=float, help="of each store's piece of a round")
    group.addoption(
        "--full",
        action="store_const",
        dest="mandrake_mode",
        const="full",
        default="bench",
        help="more and longer rounds, and a file of a million turns",
    )
    group.addoption(
        "--brief",
        action="store_const",
        dest="mandrake_mode",
        const="brief",
        help="only show that the suite works: ours and bare APSW, no limit is held",
    )
    group.addoption(
        "--results",
        metavar="FILE",
        default=".benchmarks/results.json",
        help="where the figures go, for `python -m benchmarks.report FILE`",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    pace = _pace(config)
    if pace.holds_limits and pace.rounds < FEWEST_ROUNDS:
        raise pytest.UsageError(f"--rounds must be at least {FEWEST_ROUNDS}")
    # pytest-benchmark's own table shows this library's rounds only, without the rivals.
    config.option.benchmark_quiet = True


def _pace(config: pytest.Config) -> Pace:
    pace = PACES[config.getoption("mandrake_mode")]
    return msgspec.structs.replace(
        pace,
        rounds=config.getoption("--rounds") or pace.rounds,
        seconds=config.getoption("--seconds") or pace.seconds,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(1_800))  # the project's 60 s are for a test


def _chosen_folder(config: pytest.Config) -> Path:
    chosen = config.getoption("--databases-in")
    return Path(chosen).resolve() if chosen else usual_folder(config.rootpath)


def _description(folder: Path) -> list[str]:
    lines = [f"{name}: {value}" for name, value in describe(folder).items()]
    lines.append("durable = synchronous FULL, fast = synchronous NORMAL; both WAL")
    if is_in_memory(folder):
        lines.append("WARNING: in memory, where an fsync costs nothing; give --databases-in")
    return lines


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, object]
) -> None:
    machine_info["mandrake"] = describe(_chosen_folder(config))


@pytest.fixture(scope="session")
def pace(pytestconfig: pytest.Config) -> Pace:
    """How long is measured."""
    return _pace(pytestconfig)


@pytest.fixture(scope="session")
def databases(pytestconfig: pytest.Config) -> Iterator[Path]:
    """A folder on the measured disk, removed afterwards."""
    # Not in the report header, which the project's -q leaves out.
    print("\n" + "\n".join(_description(_chosen_folder(pytestconfig))))
    with TemporaryDirectory(
        prefix="mandrake-bench-", dir=_chosen_folder(pytestconfig), ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


@pytest.fixture
def folder(databases: Path) -> Iterator[Path]:
    """A folder of one comparison's databases."""
    with TemporaryDirectory(dir=databases, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config, pace: Pace) -> Iterator[Results]:
    """The figures; saved to a file at the end, also of a run in which limits were missed."""
    results = Results(
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        mode=pace.mode,
        machine=describe(_chosen_folder(pytestconfig)),
        versions=versions(),
    )
    yield results
    file = Path(pytestconfig.getoption("--results"))
    results.save(file)
    print(f"\n\nthe figures are in {file}: python -m benchmarks.report {file}", flush=True)


@pytest.fixture(scope="session")
def workers(databases: Path) -> Iterator[Workers]:
    """The worker processes of this run."""
    workers = Workers(databases / "workers.log")
    yield workers
    workers.end_from(0)


@pytest.fixture(scope="module", autouse=True)
def one_worker_each(workers: Workers) -> Iterator[None]:
    """End what a module has started for several processes of a store."""
    yield
    workers.end_from(1)


@pytest.fixture
def bench(
    benchmark: BenchmarkFixture, results: Results, workers: Workers, folder: Path, pace: Pace
) -> Iterator[Bench]:
    """What a test measures with."""
    bench = Bench(benchmark, results, workers, folder, pace)
    yield bench
    bench.close()
