"""What a fresh interpreter takes to run a statement, an import above all."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from benchmarks.messages import Run
from benchmarks.process import PROJECT

# Compiled files are used, as in an installed package: some shells switch writing them off.
_ENVIRONMENT = {
    name: each for name, each in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}


def import_often(
    statement: str,
    times: int,
    *,
    python: Path | str = sys.executable,
    path: Sequence[Path] = (PROJECT,),
) -> Run:
    """Run a statement in so many interpreters, one after the other.

    Args:
        statement: of Python.
        times: how many interpreters.
        python: the interpreter.
        path: where modules are looked for before all else; the interpreter works in the first one.
    """
    environment = _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    since = _processor_of_children()
    began = before = monotonic()
    latencies = []
    for _ in range(times):
        subprocess.run([str(python), "-c", statement], cwd=path[0], env=environment, check=True)
        after = monotonic()
        latencies.append(after - before)
        before = after
    processor = _processor_of_children() - since
    return Run(began=began, ended=before, latencies=latencies, processor=processor)


def _processor_of_children() -> float:
    """Return the seconds of processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
