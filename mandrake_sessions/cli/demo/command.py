"""``demo``: agents write, a signal ends them, and a fresh process checks what is left.

::

    demo ──► demo-agents    8 agents, 2 readers, 3 databases ── SIGTERM ──► graceful shutdown
         └─► demo-verify    a fresh process: the databases against the log of acknowledgements
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from mandrake_sessions.cli.demo.figures import Figures
from mandrake_sessions.cli.demo.screen import Screen, milliseconds
from mandrake_sessions.cli.errors import CommandError, ExitCode
from mandrake_sessions.cli.output import print_fields, print_json, print_text
from mandrake_sessions.cli.target import Json
from mandrake_sessions.database.health.wording import counted
from mandrake_sessions.options import Durability

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a demo.")]
Seconds = Annotated[float, typer.Option(min=0.1, max=3600, help="How long the agents work.")]
Agents = Annotated[int, typer.Option(min=1, max=64, help="How many threads write.")]
Durable = Annotated[
    Durability, typer.Option(help="What an acknowledged write survives: a power cut, or a crash.")
]

_STUCK_SECONDS = 30.0
"""After the signal; then the agents' process is killed, and that is an error."""


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command()(demo)
    app.command("demo-agents", hidden=True)(demo_agents)
    app.command("demo-verify", hidden=True)(demo_verify)


def demo(
    *,
    seconds: Seconds = 8.0,
    agents: Agents = 8,
    directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to put everything, new or empty; a fresh temporary one if not given.",
            show_default=False,
        ),
    ] = None,
    durability: Durable = Durability.DURABLE,
    as_json: Json = False,
) -> None:
    """Show the library at work: agents and readers, a signal in their midst, and the proof.

    A system database and two workspaces, into whose conversations the agents stream answers while
    readers render histories and watchers follow. SIGTERM then shuts them down as they write. Every
    acknowledgement is in a log that was fsynced, and a fresh process reopens the databases and
    looks for each of them. Exit code 1 if there was an error, or anything is missing.
    """
    place = _empty_directory(directory)
    if not as_json:
        print_text(f"{counted(agents, 'agent')} and 2 readers at 3 databases in {place}")
    try:
        with Screen(seconds, is_silent=as_json) as screen:
            closing = _run_agents(place, seconds, agents, durability, screen)
        if not as_json:
            print_text("shut down in their midst; a fresh process looks for what was acknowledged")
        verification = _run_verification(place)
    except KeyboardInterrupt:
        raise CommandError(
            f"Interrupted; what there is stays in {place}", ExitCode.INTERRUPTED
        ) from None
    if verification["acknowledged"] != closing.acknowledged:
        closing.errors.append(
            f"the log has {verification['acknowledged']} acknowledgements, "
            f"and the agents told of {closing.acknowledged}"
        )
    is_ok = bool(verification["ok"]) and not closing.errors
    if as_json:
        print_json(_document(place, agents, durability, closing, verification, is_ok=is_ok))
    else:
        _print_closing(place, closing, verification, is_ok=is_ok)
    if not is_ok:
        raise typer.Exit(ExitCode.FAILED)


def demo_agents(
    directory: Directory, *, agents: Agents = 8, durability: Durable = Durability.DURABLE
) -> None:
    """Let the agents work until a signal comes; `demo` starts this."""
    from mandrake_sessions.cli.demo.stage import perform

    perform(directory, agents, durability)


def demo_verify(directory: Directory, *, as_json: Json = False) -> None:
    """Compare the databases of a demo with its log; exit code 1 if anything is missing."""
    from mandrake_sessions.cli.demo.verification import verify

    result = verify(directory)
    if as_json:
        print_json({**msgspec.to_builtins(result), "ok": result.is_ok})
    else:
        print_fields(
            [
                ("acknowledged", result.acknowledged),
                ("found again", result.found),
                ("refused", result.refused),
                ("refused but stored", result.refused_but_stored),
                *((each.name, f"integrity {each.integrity}") for each in result.databases),
            ]
        )
        for problem in result.problems:
            print_text(problem)
    if not result.is_ok:
        raise typer.Exit(ExitCode.FAILED)


def _empty_directory(directory: Path | None) -> Path:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="mandrake-demo-"))
    place = directory.expanduser().absolute()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise CommandError(
            f"{place} is not empty.", ExitCode.EXISTS, "Name a new directory, or none."
        )
    return place


# -- the process with the agents ----------------------------------------------------------------


def _run_agents(
    place: Path, seconds: float, agents: int, durability: Durability, screen: Screen
) -> Figures:
    """Start the agents, end them with a signal while they work, and return their last figures."""
    last = Figures()
    options = ["--agents", str(agents), "--durability", durability.value]
    with _started("demo-agents", str(place), *options) as process:
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
    return [sys.executable, "-P", "-m", "mandrake_sessions.cli", *arguments]


def _environment() -> dict[str, str]:
    """Return an environment in which another process finds the modules that this one found."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path}


# -- the process that checks --------------------------------------------------------------------


def _run_verification(place: Path) -> dict[str, Any]:
    process = subprocess.run(
        _command_line("demo-verify", str(place), "--json"),
        env=_environment(),
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        found: dict[str, Any] = msgspec.json.decode(process.stdout)
        if "error" in found:
            raise CommandError(f"The check failed: {found['error']['message']}", ExitCode.FAILED)
    except msgspec.MsgspecError as error:
        raise CommandError(
            f"The check ended with {process.returncode} and without a result.", ExitCode.FAILED
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
        "directory": place,
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
    print_text()
    print_fields(
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
        print_text(f"! {problem}", style="bold red")
    if is_ok:
        print_text("\nEverything that was acknowledged was found again.", style="bold green")
    else:
        print_text("\nThe demo failed.", style="bold red")
    print_text(
        f"The databases and their log stay in {place}\n"
        f"  {_program()} sessions list --root {shlex.quote(str(place))}\n"
        f"  {_program()} demo-verify {shlex.quote(str(place))}"
    )


def _program() -> str:
    """Return how this command was called, so that what is printed can be typed."""
    called = Path(sys.argv[0])
    if shutil.which(called.name) is not None or called.name == "__main__.py":
        return "mandrake-sessions"
    return os.path.relpath(called)
