"""Where the databases live, how many rounds are run, and what the machine is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import pytest

from benchmarks.machine import describe, is_in_memory
from benchmarks.trace import AppendScript, trace_append

FOLDER_VARIABLE = "MANDRAKE_BENCH_DIR"
FEWEST_ROUNDS = 5


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
        default=9,
        help=f"rounds of each comparison, at least {FEWEST_ROUNDS}",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--rounds") < FEWEST_ROUNDS:
        raise pytest.UsageError(f"--rounds must be at least {FEWEST_ROUNDS}")
    # pytest-benchmark's own table shows our rounds only, without who they are compared with.
    config.option.benchmark_quiet = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(180))  # the project's 60 s are for a test


def _chosen_folder(config: pytest.Config) -> Path:
    chosen = config.getoption("--databases-in")
    if chosen:
        return Path(chosen).resolve()
    # A temporary folder in memory would make `durable` free: the checkout is on a disk, then.
    places = [Path(gettempdir()).resolve(), config.rootpath]
    return next((place for place in places if not is_in_memory(place)), places[0])


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
def databases(pytestconfig: pytest.Config) -> Iterator[Path]:
    """A folder on the disk that is measured, gone afterwards."""
    # Not in the report header, which the project's -q leaves out.
    print("\n" + "\n".join(_description(_chosen_folder(pytestconfig))))
    with TemporaryDirectory(prefix="mandrake-bench-", dir=_chosen_folder(pytestconfig)) as folder:
        yield Path(folder)


@pytest.fixture
def folder(databases: Path) -> Iterator[Path]:
    """A folder of one comparison's databases."""
    with TemporaryDirectory(dir=databases) as folder:
        yield Path(folder)


@pytest.fixture
def rounds(pytestconfig: pytest.Config) -> int:
    """How often each store is measured."""
    return int(pytestconfig.getoption("--rounds"))


@pytest.fixture(scope="session")
def script(databases: Path) -> AppendScript:
    """The statements of one append of ours."""
    return trace_append(databases)
