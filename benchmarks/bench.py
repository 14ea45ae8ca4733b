"""The fixture of a benchmark: comparisons of stores, of parts of this library, and the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.comparison import Comparison
from benchmarks.contestant import Contestant, Workers
from benchmarks.messages import Fill, Open
from benchmarks.pace import Pace
from benchmarks.record import Record
from benchmarks.results import Metric, Results, Scenario
from benchmarks.rivals import rivals
from mandrake_sessions import Durability


class Filled(msgspec.Struct, frozen=True):
    """Files that are filled once and read by several comparisons of the same stores.

    Attributes:
        folder: where they are.
        exchanges: of the one conversation in each.
        conversations: the key of it, by store; empty until they are filled.
    """

    folder: Path
    exchanges: int
    conversations: dict[str, str] = {}


class Bench:
    """Begins the comparisons of a test.

    Args:
        benchmark: of the test.
        results: where the figures go.
        workers: the processes of the stores.
        folder: of the test's databases.
        pace: how long is measured.
    """

    def __init__(
        self,
        benchmark: BenchmarkFixture,
        results: Results,
        workers: Workers,
        folder: Path,
        pace: Pace,
    ) -> None:
        self._benchmark = benchmark
        self._results = results
        self._workers = workers
        self._folder = folder
        self._pace = pace
        self._begun: list[Comparison] = []

    def compare(
        self,
        id: str,
        title: str,
        *,
        unit: str,
        stores: Sequence[str],
        durability: Durability = Durability.DURABLE,
        metric: Metric = "per_second",
        processes: int = 1,
        files: int = 1,
        conversations: int = 0,
        names: Sequence[str] = (),
        is_stored: bool = True,
        longer: float = 1.0,
        filled: Filled | None = None,
    ) -> Comparison:
        """Return a comparison in which every store is open.

        Args:
            id: of the scenario.
            title: of the scenario, without the durability.
            unit: the unit of the count, in the plural.
            stores: their classes; one may come several times, with a worker each.
            durability: of all stores.
            metric: the figure by which they are compared.
            processes: of each store.
            files: of each store, in each process.
            conversations: begun in each process.
            names: their names in this comparison, if not the store's own name.
            is_stored: whether the timed calls store anything, so that the durability matters.
            longer: how many times as long as others its pieces are.
            filled: files that several comparisons read, which are filled here if they are not yet.
        """
        scenario = Scenario(
            id=id,
            title=title,
            unit=unit,
            durability=durability.value if is_stored else "",
            metric=metric,
            rounds=self._pace.rounds,
            seconds=self._pace.seconds * longer,
        )
        comparison = self._begin(scenario)
        in_folder = filled.folder if filled else self._folder
        self._enter_all(comparison, stores, names, processes, in_folder)
        known = filled.conversations if filled else {}
        comparison.open(
            lambda each: Open(
                folder=str(each.folder),
                durability=durability,
                files=files,
                conversations=conversations,
                known=known.get(each.label, ""),
            )
        )
        if filled is not None and not known:
            comparison.prepare(Fill(exchanges=filled.exchanges))
            known |= comparison.conversations()
        return comparison

    def compare_runs(
        self, id: str, title: str, *, unit: str, names: Sequence[str], metric: Metric = "per_second"
    ) -> Comparison:
        """Return a comparison of calls in this process, this library's first."""
        comparison = self._begin(
            Scenario(
                id=id,
                title=title,
                unit=unit,
                metric=metric,
                rounds=self._pace.rounds,
                seconds=self._pace.seconds,
            )
        )
        for name in names:
            comparison.enter(Contestant(name, name, [], self._folder))
        return comparison

    def record(self, id: str, title: str, *, unit: str) -> Record:
        """Return a scenario, new or begun before, with lines for parts of this library alone."""
        scenario = next((each for each in self._results.scenarios if each.id == id), None)
        if scenario is None:
            scenario = Scenario(id=id, title=title, unit=unit, metric="median", rounds=1)
            self._results.scenarios.append(scenario)
        return Record(self._benchmark, scenario, are_limits_held=self._pace.holds_limits)

    def close(self) -> None:
        """Close every store's files."""
        for each in self._begun:
            each.close()

    def _begin(self, scenario: Scenario) -> Comparison:
        self._results.scenarios.append(scenario)
        comparison = Comparison(self._benchmark, scenario, are_limits_held=self._pace.holds_limits)
        self._begun.append(comparison)
        return comparison

    def _enter_all(
        self,
        comparison: Comparison,
        stores: Sequence[str],
        names: Sequence[str],
        processes: int,
        folder: Path,
    ) -> None:
        """Add the stores that can be measured here, and name the others."""
        shares: dict[int, list[tuple[str, int]]] = {}
        for place, where in enumerate(stores):
            known = rivals()[where]
            if known.missing:
                reason = f"{' and '.join(known.missing)} not installed"
                comparison.leave_out(where, known.name, reason)
            elif self._pace.holds_limits or known.is_ours_or_bare:
                # A store that comes twice has a worker for each time.
                first = sum(each == where for each in stores[:place]) * processes
                shares[place] = [(where, first + number) for number in range(processes)]
        asked = [each for share in shares.values() for each in share]
        started = dict(zip(asked, self._workers.get(asked), strict=True))
        for place, share in shares.items():
            where = stores[place]
            name, label = (names[place],) * 2 if names else (rivals()[where].name, where)
            taken = [started[each] for each in share]
            comparison.enter(Contestant(label, name, taken, folder / str(place)))
