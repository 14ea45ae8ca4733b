"""Compares stores that are measured alternately.

The machine's speed changes from second to second, and other programs share it. So the stores
alternate, round by round, and the result is the ratio of two stores in the same round. The median
of these ratios is compared with the limit; the lowest and the highest show how far to trust it.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contestant import GROWING, PREPARING, Contestant
from benchmarks.limits import Limit, at_most, ratios_of, rounds_of
from benchmarks.messages import AnyCommand, Check, Checked, Close, Done, Open, Run
from benchmarks.process import WorkerError
from benchmarks.results import NOT_OFFERED, Figures, Scenario, Verdict
from benchmarks.rivals import rivals
from benchmarks.tables import print_scenario

SHORTEST_WARM_UP = 0.05

Piece = Callable[[Contestant, float], Run]
"""Does a contestant's timed piece of so many seconds."""


class Comparison:
    """Measures stores alternately.

    Args:
        benchmark: gets this library's times as its own.
        scenario: the scenario, which gets the figures.
        are_limits_held: whether a missed limit fails.
    """

    def __init__(
        self, benchmark: BenchmarkFixture, scenario: Scenario, *, are_limits_held: bool
    ) -> None:
        self._benchmark = benchmark
        self.scenario = scenario
        self._are_limits_held = are_limits_held
        self._contestants: dict[str, Contestant] = {}
        self._missing: dict[str, str] = {}

    def enter(self, contestant: Contestant) -> None:
        """Add a store; the first one is this library."""
        self._contestants[contestant.label] = contestant

    def leave_out(self, label: str, name: str, reason: str) -> None:
        """Name a store that cannot take part."""
        self._missing[label] = name
        self.scenario.skipped[name] = reason

    def _racing(self) -> list[Contestant]:
        return [each for each in self._contestants.values() if not each.failed]

    def _ours(self) -> Contestant:
        return next(iter(self._contestants.values()))

    def _drop(self, contestant: Contestant, error: WorkerError) -> None:
        if contestant is self._ours():
            raise error
        contestant.failed = str(error)
        contestant.is_offered = error.is_offered
        if error.is_offered:
            print(f"  {contestant.name} dropped out: {error}", file=sys.stderr, flush=True)

    def open(self, command: Callable[[Contestant], Open]) -> None:
        """Open every store; the second process after the first has made the files."""
        for place in range(max(len(each.processes) for each in self._racing())):
            self._ask_all(
                [each for each in self._racing() if place < len(each.processes)], command, place
            )

    def prepare(self, command: AnyCommand) -> None:
        """Have every store run a command untimed."""
        self._ask_all(self._racing(), lambda _: command, 0)

    def conversations(self) -> dict[str, str]:
        """Return the first conversation of every store, by its label."""
        return {each.label: each.conversation for each in self._racing()}

    def prepare_each(self, commands: Mapping[str, AnyCommand]) -> None:
        """Have every store run its own command, untimed, by its label."""
        self._ask_all(
            self._racing(), lambda contestant: commands[contestant.label], 0, timeout=GROWING
        )

    def _ask_all(
        self,
        contestants: Iterable[Contestant],
        command: Callable[[Contestant], AnyCommand],
        place: int,
        timeout: float = PREPARING,
    ) -> None:
        asked = []
        for each in contestants:
            try:
                each.processes[place].send(command(each))
                asked.append(each)
            except WorkerError as error:
                self._drop(each, error)
        for each in asked:
            try:
                done = each.processes[place].receive(Done, timeout)
                each.conversation = (done.conversations or [each.conversation])[0]
            except WorkerError as error:
                self._drop(each, error)

    def measure(self, piece: Piece) -> None:
        """Have every store run its piece, this library last, again and again."""
        seconds = self.scenario.seconds
        for contestant in self._racing():
            self._try(contestant, piece, max(SHORTEST_WARM_UP, seconds / 4), is_warm_up=True)

        ours = self._ours()
        rounds = itertools.count()

        def rivals_first() -> None:
            rivals = [each for each in self._racing() if each is not ours]
            # The order changes, because a store leaves work to the disk for the next one.
            first = next(rounds) % max(1, len(rivals))
            for contestant in rivals[first:] + rivals[:first]:
                self._try(contestant, piece, seconds)

        # pytest-benchmark calls the setup before each round and outside of its clock.
        self._benchmark.pedantic(  # type: ignore[no-untyped-call]
            lambda: self._try(ours, piece, seconds), setup=rivals_first, rounds=self.scenario.rounds
        )

    def _try(
        self, contestant: Contestant, piece: Piece, seconds: float, *, is_warm_up: bool = False
    ) -> None:
        try:
            run = piece(contestant, seconds)
        except WorkerError as error:
            self._drop(contestant, error)
            return
        if is_warm_up:
            contestant.warm_up = run
        elif run.latencies:
            contestant.runs.append(run)
        else:
            contestant.failed = f"every call failed: {run.errors}"

    def check(self) -> None:
        """Check for the acknowledged exchanges of every store."""
        for contestant in self._racing():
            try:
                contestant.checked = [
                    each.ask(Check(), Checked, PREPARING) for each in contestant.processes
                ]
            except WorkerError as error:
                self._drop(contestant, error)

    def close(self) -> None:
        """Close every store's files."""
        for contestant in self._racing():
            for process in contestant.processes:
                try:
                    process.ask(Close(), Done, PREPARING)
                except WorkerError as error:
                    self._drop(contestant, error)

    def hold_at_most(self, limit: str, value: float, bound: float) -> None:
        """Compare a value that was not measured in rounds with a limit."""
        if self._are_limits_held:
            self.scenario.verdicts.append(at_most(limit, value, bound))

    def judge(self, *limits: Limit) -> None:
        """Print the table; fail if this library lost an exchange, raised, or missed a limit."""
        self.scenario.figures += [self._figures(each) for each in self._contestants.values()]
        if self._are_limits_held:
            self.scenario.verdicts += [self._verdict(each) for each in limits]
        self._benchmark.extra_info["scenario"] = msgspec.to_builtins(self.scenario)
        print_scenario(self.scenario)
        mine = self.scenario.figures[0]
        assert mine.found_again == mine.acknowledged, f"acknowledged, and not found again: {mine}"
        assert not mine.errors, f"errors: {mine.errors}"
        missed = [each.text for each in self.scenario.verdicts if each.is_met is False]
        if missed:
            pytest.fail("\n".join(missed), pytrace=False)

    def _verdict(self, limit: Limit) -> Verdict:
        racing = {each.label: each.runs for each in self._racing()}
        theirs: dict[str, Sequence[Run]] = {
            each: racing[each] for each in limit.against if each in racing
        }
        names = {each.label: each.name for each in self._contestants.values()} | self._missing
        names |= {each: rivals()[each].name for each in limit.against if each not in names}
        return limit.judge(self._ours().runs, theirs, names)

    def _figures(self, contestant: Contestant) -> Figures:
        metric, runs = self.scenario.metric, contestant.runs
        reason = contestant.failed if contestant.is_offered else NOT_OFFERED
        figures = Figures(store=contestant.name, failed=reason, remark=contestant.remark)
        if not runs:
            return figures
        ours = self._ours().runs[: len(runs)]
        figures.per_second = statistics.median(rounds_of(runs, "per_second"))
        figures.median = statistics.median(each * 1000 for run in runs for each in run.latencies)
        figures.p99 = statistics.median(rounds_of(runs, "p99"))
        figures.longest = statistics.median(rounds_of(runs, "longest"))
        figures.worst = max(rounds_of(runs, "longest"))
        figures.errors = dict(sum((Counter(run.errors) for run in runs), Counter()))
        figures.rounds = rounds_of(runs, metric)
        figures.ratios = ratios_of(ours, runs, metric) if contestant is not self._ours() else []
        figures.acknowledged = sum(each.acknowledged for each in contestant.checked)
        figures.found_again = sum(each.found_again for each in contestant.checked)
        for each in contestant.checked:
            figures.more |= each.figures
        return figures
