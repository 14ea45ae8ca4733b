"""This checkout against another commit of it: ``python -m benchmarks.against COMMIT``.

Each round starts new processes of both versions. At each measure they alternate, a tenth of a
second each, and the first one changes from turn to turn: other load of the machine affects both.
The measuring code is this checkout's for both, the library is each one's own. The result is the
median of the ratios of all turns, of wall-clock time and of processor time; the latter is more
reliable on a shared machine.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.checkouts import Checkout, checkout, this_checkout
from benchmarks.contestant import PREPARING, Contestant
from benchmarks.limits import figure_of, quantile
from benchmarks.machine import describe, usual_folder
from benchmarks.measures import MEASURES, Measure
from benchmarks.messages import Check, Checked, Close, Done, Open, Run
from benchmarks.process import PROJECT, WorkerProcess
from benchmarks.rivals import OURS_PUBLIC
from benchmarks.tables import print_table, significant

SIDES = ("ours", "base")


class Measured(msgspec.Struct):
    """The result of a measure, a run for each turn.

    Attributes:
        measure: the measure.
        runs: of both sides.
    """

    measure: Measure
    runs: dict[str, list[Run]]

    def times(self, side: str, time_of: Callable[[Measure, Run], float]) -> list[float]:
        """Return the microseconds of a call, turn by turn."""
        return [time_of(self.measure, run) for run in self.runs[side]]

    def ratios(self, time_of: Callable[[Measure, Run], float]) -> list[float]:
        """Return how many times as fast as the base ours is, turn by turn."""
        pairs = zip(self.times("ours", time_of), self.times("base", time_of), strict=True)
        return [base / max(ours, 1e-9) for ours, base in pairs]


def wall(measure: Measure, run: Run) -> float:
    """Return the microseconds of a call by the clock."""
    figure = figure_of(run, measure.metric)
    return 1e6 / figure if measure.metric == "per_second" else figure * 1e3


def processor(_measure: Measure, run: Run) -> float:
    """Return the microseconds of processor time of a call."""
    return run.processor / len(run.latencies) * 1e6


CLOCKS = {"wall": wall, "processor": processor}


class Round:
    """The processes of both versions in one round.

    Args:
        versions: by the side's name.
        folder: of the databases.
    """

    def __init__(self, versions: Mapping[str, Checkout], folder: Path) -> None:
        self._versions = versions
        self._folder = folder
        self._processes: dict[str, list[WorkerProcess]] = {side: [] for side in versions}

    def run(self, name: str, measure: Measure, turns: int, seconds: float) -> dict[str, list[Run]]:
        """Alternate a measure's piece between both versions; return the runs of each.

        Raises:
            WorkerError: one of them failed.
        """
        stores = {side: self._store(name, side, measure) for side in self._versions}
        runs: dict[str, list[Run]] = {side: [] for side in stores}
        order = list(stores)
        # The first turn of each does not count.
        for _ in range(1 + turns):
            for side in order:
                runs[side].append(measure.piece(stores[side], seconds))
            order.reverse()
        for side, store in stores.items():
            del runs[side][0]
            errors = [run.errors for run in runs[side] if run.errors]
            assert not errors, f"{name} of {side}: {errors}"
            for process in store.processes:
                checked = process.ask(Check(), Checked, PREPARING)
                assert checked.acknowledged == checked.found_again, f"{name} of {side}: {checked}"
                process.ask(Close(), Done, PREPARING)
            shutil.rmtree(store.folder)
        return runs

    def _store(self, name: str, side: str, measure: Measure) -> Contestant:
        folder = self._folder / f"{name}-{side}"
        processes = self._take(side, measure.processes)
        opening = Open(
            folder=str(folder),
            durability=measure.durability,
            conversations=measure.conversations,
        )
        for process in processes:
            process.ask(opening, Done, PREPARING)
        for command in measure.prepare:
            processes[0].ask(command, Done, PREPARING)
        return Contestant(side, side, processes, folder)

    def _take(self, side: str, count: int) -> list[WorkerProcess]:
        version, started = self._versions[side], self._processes[side]
        while len(started) < count:
            log = self._folder / "workers.log"
            path = version.path_in(self._folder)
            worker = WorkerProcess(OURS_PUBLIC, log, python=version.python, path=path)
            started.append(worker)
            library = Path(worker.facts().library)
            assert library.parent.samefile(version.root), f"{side} has imported {library}"
        return started[:count]

    def end(self) -> None:
        """End the processes."""
        for started in self._processes.values():
            for each in started:
                each.kill()


def compare(
    ours: Checkout, base: Checkout, names: Sequence[str], *, rounds: int, turns: int, seconds: float
) -> dict[str, Measured]:
    """Measure both versions in turns.

    Args:
        ours: the version in question.
        base: the version to compare it with.
        names: of the measures.
        rounds: how many.
        turns: of each version at each measure in a round.
        seconds: of a turn.

    Raises:
        WorkerError: a version failed.
    """
    found = {name: Measured(MEASURES[name], {side: [] for side in SIDES}) for name in names}
    versions = {"ours": ours, "base": base}
    for _ in range(rounds):
        with TemporaryDirectory(
            prefix="mandrake-bench-", dir=usual_folder(PROJECT), ignore_cleanup_errors=True
        ) as folder:
            current = Round(versions, Path(folder))
            try:
                for name in names:
                    for side, runs in current.run(name, MEASURES[name], turns, seconds).items():
                        found[name].runs[side] += runs
            finally:
                current.end()
    return found


def print_all(found: Mapping[str, Measured]) -> None:
    """Print a table for each clock."""
    for clock, time_of in CLOCKS.items():
        headings = (f"{clock}, us a call", "ours", "base", "times as fast", "25 %", "75 %")
        table: list[tuple[str, ...]] = [headings]
        for name, each in found.items():
            ratios = sorted(each.ratios(time_of))
            medians = [statistics.median(each.times(side, time_of)) for side in SIDES]
            values = (statistics.median(ratios), quantile(ratios, 0.25), quantile(ratios, 0.75))
            cells = [*map(significant, medians), *(f"{value:.3f}" for value in values)]
            table.append((f"{name}: {each.measure.title}", *cells))
        print()
        print_table(table)


def missed(found: Mapping[str, Measured], at_least: float, clock: str) -> list[str]:
    """Return a line for each measure that is below the limit by that clock."""
    ratios = {name: statistics.median(each.ratios(CLOCKS[clock])) for name, each in found.items()}
    return [
        f"{name}: {ratio:.3f} times as fast as the base by {clock} time, at least {at_least:g}"
        for name, ratio in ratios.items()
        if ratio < at_least
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against",
        description="Measure this checkout against another commit of it, in turns.",
    )
    parser.add_argument("commit", help="the version to compare with")
    parser.add_argument("--rounds", type=int, default=9, help="the default is 9")
    parser.add_argument("--turns", type=int, default=5, help="of each version in a round")
    parser.add_argument("--seconds", type=float, default=0.1, help="of a turn")
    parser.add_argument(
        "--only", metavar="NAME,...", default=",".join(MEASURES), help="some of %(default)s"
    )
    parser.add_argument(
        "--at-least", type=float, metavar="RATIO", help="exit with 1 if a measure is below it"
    )
    parser.add_argument(
        "--by", choices=CLOCKS, default="wall", help="the clock of that limit; wall by default"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and return the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    names = given.only.split(",")
    if unknown := [name for name in names if name not in MEASURES]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    for name, value in describe(usual_folder(PROJECT)).items():
        print(f"{name}: {value}")
    print(f"{given.rounds} rounds of {given.turns} turns against {given.commit}", flush=True)
    found = compare(
        this_checkout(),
        checkout(given.commit),
        names,
        rounds=given.rounds,
        turns=given.turns,
        seconds=given.seconds,
    )
    print_all(found)
    lines = [] if given.at_least is None else missed(found, given.at_least, given.by)
    print("", *lines, sep="\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
