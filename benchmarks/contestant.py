"""A store in a comparison, and the worker processes that run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from benchmarks.messages import AnyCommand, Append, Checked, Run
from benchmarks.process import WorkerProcess

STARTED_AT_ONCE = 4
LEAD = 0.25
"""Seconds that several processes have to get their threads ready."""
PATIENCE = 40.0
"""Seconds that a timed piece may take beyond its time: SQLite's own waiting may be 30."""
PREPARING = 120.0
"""Seconds that a store may take to be opened and filled; one that takes longer drops out."""
GROWING = 1_200.0
"""Seconds in which ours and bare APSW store a million turns."""


class Contestant:
    """A store in one comparison.

    Args:
        label: its key in this comparison.
        name: its name in the tables.
        processes: its workers.
        folder: of its files.

    Attributes:
        failed: why it has dropped out; "" while it takes part.
        conversation: the first that it has begun.
    """

    def __init__(
        self, label: str, name: str, processes: Sequence[WorkerProcess], folder: Path
    ) -> None:
        self.label = label
        self.name = name
        self.processes = processes
        self.folder = folder
        self.failed = ""
        self.is_offered = True
        self.runs: list[Run] = []
        self.warm_up: Run | None = None
        self.checked: list[Checked] = []
        self.conversation = ""

    @property
    def remark(self) -> str:
        """A note on it for readers."""
        alive = [each for each in self.processes if each.is_alive]
        return alive[0].facts().remark if alive else ""

    def ask(self, command: AnyCommand, timeout: float = PREPARING) -> Run:
        """Have the first worker do a timed piece."""
        return self.processes[0].ask(command, Run, timeout)

    def append(self, seconds: float) -> Run:
        """Append from all workers' threads at once."""
        if len(self.processes) == 1:
            return self.ask(Append(seconds=seconds), seconds + PATIENCE)
        command = Append(seconds=seconds, at=monotonic() + LEAD)
        for process in self.processes:
            process.send(command)
        return together(
            [process.receive(Run, seconds + LEAD + PATIENCE) for process in self.processes]
        )


def together(runs: Sequence[Run]) -> Run:
    """Return the pieces of several processes as one round."""
    errors: Counter[str] = sum((Counter(run.errors) for run in runs), Counter())
    return Run(
        began=min(run.began for run in runs),
        ended=max(run.ended for run in runs),
        latencies=[each for run in runs for each in run.latencies],
        processor=sum(run.processor for run in runs),
        failed=[each for run in runs for each in run.failed],
        errors=errors,
    )


class Workers:
    """The worker processes of a run. Each starts once: a peer's import may take seconds."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._processes: dict[tuple[str, int], WorkerProcess] = {}

    def get(self, wanted: Sequence[tuple[str, int]]) -> list[WorkerProcess]:
        """Return a worker for each class and number, starting those that are not running."""
        missing = [each for each in wanted if not self._is_running(each)]
        for begin in range(0, len(missing), STARTED_AT_ONCE):
            batch = missing[begin : begin + STARTED_AT_ONCE]
            for where, number in batch:
                self._processes[where, number] = WorkerProcess(where, self._log)
            for each in batch:
                self._processes[each].facts()
        return [self._processes[each] for each in wanted]

    def _is_running(self, which: tuple[str, int]) -> bool:
        return which in self._processes and self._processes[which].is_alive

    def end_from(self, number: int) -> None:
        """End all workers of each class but the first ``number``."""
        for which in [each for each in self._processes if each[1] >= number]:
            self._processes.pop(which).kill()
