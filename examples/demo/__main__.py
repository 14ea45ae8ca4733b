"""The command line of the demo: ``python -m examples.demo --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.demo.command import check, let_agents_work, show
from examples.demo.ledger import DemoError
from mandrake_sessions import Durability


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 if something is wrong, 2 for its usage."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "agents":
            return let_agents_work(given.place, given.agents, given.durability)
        if given.command == "verify":
            return check(given.place, as_json=given.json)
        return show(
            given.directory, given.seconds, given.agents, given.durability, as_json=given.json
        )
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        # An interrupted one ends as a signal ends a process.
        return 130 if isinstance(error.__context__, KeyboardInterrupt) else 1


def _parser() -> argparse.ArgumentParser:
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON document")
    work = argparse.ArgumentParser(add_help=False)
    work.add_argument(
        "--agents", type=int, choices=range(1, 65), default=8, metavar="N",
        help="how many threads write, 1 to 64",
    )  # fmt: skip
    work.add_argument(
        "--durability", type=Durability, choices=list(Durability), default=Durability.DURABLE,
        help="what an acknowledged write survives: a power cut, or a crash",
    )  # fmt: skip
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        parents=[as_json, work],
        description="Agents stream answers while readers render histories and watchers follow. "
        "SIGTERM shuts them down at their work, and a fresh process looks for every "
        "acknowledgement. Exit code 1 if there was an error, or anything is missing.",
    )
    parser.add_argument(
        "--seconds", type=float, default=8.0, metavar="S", help="how long the agents work"
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR",
        help="where to put everything, new or empty; a fresh temporary one if not given",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="")
    agents = commands.add_parser("agents", parents=[work], help="let the agents work")
    verify = commands.add_parser("verify", parents=[as_json], help="compare databases and log")
    for each in (agents, verify):
        each.add_argument("place", type=Path, metavar="DIR", help="the directory of a demo")
    return parser


if __name__ == "__main__":
    sys.exit(main())
