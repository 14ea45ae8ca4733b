"""Agents write, a signal ends them, and another process checks the databases.

::

    demo ──► agents    8 agents, 2 readers, 3 databases ── SIGTERM ──► graceful shutdown
         └─► verify    a fresh process: the databases against the log of acknowledgements
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from examples.demo.figures import Figures
from examples.demo.ledger import DemoError
from examples.demo.screen import Screen, milliseconds
from examples.demo.stage import run
from examples.demo.verification import verify
from mandrake_sessions import Durability

_STUCK_SECONDS = 30.0
"""After the signal; then the agents' process is killed, and that is an error."""


def show(
    directory: Path | None, seconds: float, agents: int, durability: Durability, *, as_json: bool
) -> int:
    """Show the library at work: agents and readers, a signal while they work, and the proof.

    Args:
        directory: where to put everything, new or empty; a fresh temporary one when None.
        seconds: how long the agents work.
        agents: how many threads write.
        durability: what an acknowledged write survives.
        as_json: whether to print one JSON document at the end, and nothing before.

    Returns:
        The exit code: 0, or 1 if there was an error or anything is missing.

    Raises:
        DemoError: the directory is not empty, a process failed, or Ctrl-C ended it.
    """
    place = _empty_directory(directory)
    if not as_json:
        print(f"{agents} agents and 2 readers at 3 databases in {place}", flush=True)
    try:
        with Screen(seconds, is_silent=as_json) as screen:
            closing = _run_agents(place, seconds, agents, durability, screen)
        if not as_json:
            print("shut down during the work; a new process checks for every acknowledgement")
        verification = _run_verification(place)
    except KeyboardInterrupt:
        raise DemoError(f"Interrupted; what there is stays in {place}") from None
    if verification["acknowledged"] != closing.acknowledged:
        closing.errors.append(
            f"the log has {verification['acknowledged']} acknowledgements, "
            f"and the agents had {closing.acknowledged}"
        )
    is_ok = bool(verification["ok"]) and not closing.errors
    if as_json:
        _print_json(_document(place, agents, durability, closing, verification, is_ok=is_ok))
    else:
        _print_closing(place, closing, verification, is_ok=is_ok)
    return 0 if is_ok else 1


def let_agents_work(directory: Path, agents: int, durability: Durability) -> int:
    """Let the agents work until a signal comes; ``show`` starts this as a process of its own."""
    run(directory, agents, durability)
    return 0


def check(directory: Path, *, as_json: bool) -> int:
    """Compare the databases of a demo with its log; return 1 if anything is missing.

    Raises:
        DemoError: there is no log.
    """
    result = verify(directory)
    if as_json:
        _print_json({**msgspec.to_builtins(result), "ok": result.is_ok})
    else:
        _print_fields(
            [
                ("acknowledged", result.acknowledged),
                ("found again", result.found),
                ("refused", result.refused),
                ("refused but stored", result.refused_but_stored),
                *((each.name, f"integrity {each.integrity}") for each in result.databases),
            ]
        )
        for problem in result.problems:
            print(problem)
    return 0 if result.is_ok else 1


def _empty_directory(directory: Path | None) -> Path:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="mandrake-demo-"))
    place = directory.expanduser().absolute()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise DemoError(f"{place} is not empty: name a new directory, or none.")
    return place


# -- the process with the agents ----------------------------------------------------------------


def _run_agents(
    place: Path, seconds: float, agents: int, durability: Durability, screen: Screen
) -> Figures:
    """Start the agents, end them with a signal while they work, and return their last figures."""
    last = Figures()
    options = ["--agents", str(agents), "--durability", durability.value]
    with _started("agents", str(place), *options) as process:
        assert process.stdout is not None  # it is a pipe
        timers: list[threading.Timer] = []
        try:
            for line in process.stdout:
                last = msgspec.json.decode(line, type=Figures)
                if not timers:
                    # They are at work from now on.
                    timers.append(threading.Timer(seconds, _end, [process]))
                    timers.append(threading.Timer(seconds + _STUCK_SECONDS, process.kill))
                    for timer in timers:
                        timer.daemon = True
                        timer.start()
                screen.show(last)
            process.wait()
        finally:
            for timer in timers:
                timer.cancel()
    if process.returncode or not last.is_last:
        last.errors.append(
            f"the agents' process ended with {process.returncode}"
            f"{'' if last.is_last else ', without its closing line'}"
        )
    return last


@contextlib.contextmanager
def _started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of this program as a process of its own, which does not outlive the block."""
    process = subprocess.Popen(
        _command_line(*arguments),
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C is for us: we end it, and in good order.
        process_group=0,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                _end(process)
                try:
                    process.wait(_STUCK_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the agents' process to end: by a signal, or where there is none, by its stdin."""
    with contextlib.suppress(OSError):
        if os.name == "posix":
            process.send_signal(signal.SIGTERM)
        elif process.stdin is not None:
            process.stdin.close()


def _command_line(*arguments: str) -> list[str]:
    # -P: what lies about in the current directory is no part of the program.
    return [sys.executable, "-P", "-m", "examples.demo", *arguments]


def _environment() -> dict[str, str]:
    """Return an environment in which another process finds the modules that this one found."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path}


# -- the process that checks --------------------------------------------------------------------


def _run_verification(place: Path) -> dict[str, Any]:
    process = subprocess.run(
        _command_line("verify", str(place), "--json"),
        env=_environment(),
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        found: dict[str, Any] = msgspec.json.decode(process.stdout)
    except msgspec.MsgspecError as error:
        raise DemoError(
            f"The check ended with {process.returncode} and without a result."
        ) from error
    return found


# -- how it came out ----------------------------------------------------------------------------


def _document(
    place: Path,
    agents: int,
    durability: Durability,
    closing: Figures,
    verification: dict[str, Any],
    *,
    is_ok: bool,
) -> dict[str, Any]:
    figures = msgspec.to_builtins(closing)
    del figures["is_last"]
    return {
        "ok": is_ok,
        "directory": str(place),
        "agents": agents,
        "durability": durability.value,
        **figures,
        "found": verification["found"],
        "verification": verification,
    }


def _print_closing(
    place: Path, closing: Figures, verification: dict[str, Any], *, is_ok: bool
) -> None:
    databases = verification["databases"]
    print()
    _print_fields(
        [
            ("rounds", closing.rounds),
            ("turns", closing.turns),
            ("tokens streamed", closing.tokens),
            ("updates watched", closing.watched),
            ("histories read", closing.histories),
            ("commits", closing.commits),
            ("longest wait", milliseconds(closing.longest_wait)),
            ("longest call", milliseconds(closing.longest_call)),
            ("retries", closing.retries),
            ("errors seen", len(closing.errors)),
            ("refused at shutdown", closing.refused),
            ("refused but stored", verification["refused_but_stored"]),
            ("acknowledged", verification["acknowledged"]),
            ("found again", verification["found"]),
            ("integrity", "; ".join(f"{each['name']} {each['integrity']}" for each in databases)),
            ("shutdown took", milliseconds(closing.shutdown or 0.0)),
        ]
    )
    for problem in (*closing.errors, *verification["problems"]):
        print(f"! {problem}")
    print("\nEverything that was acknowledged was found again." if is_ok else "\nThe demo failed.")
    print(f"The databases and their log stay in {place}")
    python = os.path.relpath(sys.executable)
    for module, words in (
        ("mandrake_sessions", ["sessions", "list", "--root", str(place)]),
        ("examples.demo", ["verify", str(place)]),
    ):
        print(f"  {shlex.join([python, '-m', module, *words])}")


def _print_fields(fields: Iterable[tuple[str, object]]) -> None:
    shown = list(fields)
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        print(f"{name:{width}}  {value}")


def _print_json(document: dict[str, Any]) -> None:
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
