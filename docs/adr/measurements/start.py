"""ADR 0021: what a fresh interpreter takes to be ready, without SQLAlchemy and with it."""

import os
import statistics
import subprocess
import sys
from time import perf_counter

TIMES = 15
PROGRAMS = {
    "nothing": "pass",
    "the library": "import mandrake_sessions",
    "and SQLAlchemy": "import mandrake_sessions, sqlalchemy",
    "and all statements compiled": (
        "import mandrake_sessions\nfrom tools.generate.files import generated\ngenerated()"
    ),
    "the library and structlog": "import mandrake_sessions, structlog",
    "its asyncio face": "import mandrake_sessions.aio",
}


def seconds(program: str) -> float:
    """Return how long an interpreter takes for a program."""
    # With compiled modules, as an installed package has them.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    since = perf_counter()
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    return perf_counter() - since


def main() -> None:
    """Measure in turn and print."""
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for program in PROGRAMS.values():
        seconds(program)
    for _ in range(TIMES):
        for name, program in PROGRAMS.items():
            taken[name].append(seconds(program))
    for name, each in taken.items():
        sys.stdout.write(f"{name:28}{statistics.median(each) * 1e3:6.0f} ms\n")


main()
