"""``sessions tail``: follows one conversation live, in whichever process it is written."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from mandrake_sessions.cli.errors import CommandError, ExitCode
from mandrake_sessions.cli.output import (
    call_with_result,
    document_of,
    print_json_line,
    print_piece,
    print_text,
    printable,
)
from mandrake_sessions.cli.short_ids import whole_id
from mandrake_sessions.cli.target import (
    TIMEOUT,
    Database,
    ReadOnly,
    Root,
    SessionId,
    Timeout,
    WorkspaceName,
    open_sessions,
)
from mandrake_sessions.live.watching.updates import (
    RoundUpdate,
    SessionEvent,
    SessionUpdate,
    TurnUpdate,
)
from mandrake_sessions.models import Round, Turn


def tail(
    id: SessionId,
    *,
    root: Root = None,
    workspace: WorkspaceName = None,
    database: Database = None,
    last: Annotated[
        int, typer.Option(metavar="N", help="Begin with so many of the last rounds.")
    ] = 1,
    read_only: ReadOnly = False,
    timeout: Timeout = TIMEOUT,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document for each change, a line each.")
    ] = False,
) -> None:
    """Follow a session as it grows, until Ctrl-C or until the session is deleted.

    Prints text as it is stored, about twenty times a second, also when another process writes it.
    """
    show = _print_line if as_json else _Page().show
    with (
        open_sessions(root, workspace, database, timeout, read_only=read_only) as sessions,
        sessions.watch_session(whole_id(sessions, id), last=last) as watch,
    ):
        for event in watch:
            show(event)
    raise CommandError("The session was deleted.", ExitCode.NOT_FOUND)


def _print_line(event: SessionEvent) -> None:
    print_json_line(_document(event))
    sys.stdout.flush()


def _document(event: SessionEvent) -> dict[str, Any]:
    match event:
        case TurnUpdate():
            turn = document_of(event.turn)
            # Only the new text, with its offset; the whole text would repeat each time.
            del turn["content"], turn["raw_response"]
            document = {"turn": {**turn, "offset": event.offset, "text": event.text}}
            return {**document, "deleted": event.is_deleted}
        case RoundUpdate():
            document = {"round": document_of(event.round) or {"id": event.id}}
            return {**document, "deleted": event.round is None}
        case SessionUpdate():
            document = {"session": document_of(event.session) or {"id": event.id}}
            return {**document, "deleted": event.session is None}


class _Page:
    """Prints new text for users; turns that grow at once alternate, each under its head."""

    def __init__(self) -> None:
        self._shown_turn: str | None = None
        self._sizes: dict[str, int] = {}
        self._rounds: dict[str, str] = {}
        # The index of the round of each response.
        self._indexes: dict[str, int] = {}
        self._ended: set[str] = set()
        # Line breaks at the end of the output so far; 2 leave an empty line, and none is needed
        # above the first line.
        self._breaks = 2

    def show(self, event: SessionEvent) -> None:
        """Print one change."""
        match event:
            case TurnUpdate():
                self._show_turn(event)
            case RoundUpdate(round=Round() as round_):
                self._show_round(round_)
            case RoundUpdate():
                self._line(f"── round {event.id} was deleted", style="bold red")
            case SessionUpdate(session=None):
                self._line("── the session was deleted", style="bold red")
            case SessionUpdate():
                pass
        sys.stdout.flush()

    def _show_round(self, round_: Round) -> None:
        self._indexes[round_.response.id] = round_.index
        if self._rounds.get(round_.id) == round_.request.content:
            return
        self._rounds[round_.id] = round_.request.content
        self._head(f"── round {round_.index} · {round_.id}", style="bold cyan")
        self._line(round_.request.content)

    def _show_turn(self, update: TurnUpdate) -> None:
        turn = update.turn
        if update.is_deleted:
            self._line(f"   {self._place(turn)} · {turn.id} was deleted", style="bold red")
            return
        is_anew = update.offset < self._sizes.get(turn.id, 0)
        is_end = turn.status.is_finished and turn.id not in self._ended
        self._sizes[turn.id] = update.offset + len(update.text)
        if not (update.text or is_anew or is_end):
            return
        if self._shown_turn != turn.id:
            is_named = turn.model and turn.response_id in self._indexes
            name = turn.model if is_named else turn.id
            self._head(f"   {self._place(turn)} · {name}", style="bold")
        if is_anew:
            self._line("   (written anew)", style="dim")
        self._piece(update.text)
        self._shown_turn = turn.id
        if is_end:
            self._ended.add(turn.id)
            self._show_end(turn)

    def _place(self, turn: Turn) -> str:
        index = self._indexes.get(turn.response_id)
        place = f"turn {turn.index}"
        return place if index is None else f"round {index} · {place}"

    def _show_end(self, turn: Turn) -> None:
        for call in turn.tool_calls:
            self._line(printable(f"   tool call {call_with_result(call)}"), style="dim")
        error = f" · {turn.error_message}" if turn.error_message else ""
        self._line(printable(f"   {turn.status.value}{error}"), style="dim")

    def _head(self, text: str, *, style: str) -> None:
        """Print an empty line, then a line of text."""
        self._piece("\n" * (2 - self._breaks))
        self._line(printable(text), style=style)

    def _line(self, text: str, *, style: str = "") -> None:
        """Print text on its own lines."""
        if not self._breaks:
            self._piece("\n")
        print_text(text, style=style)
        self._note_breaks(f"{text}\n")
        self._shown_turn = None

    def _piece(self, text: str) -> None:
        print_piece(text)
        self._note_breaks(text)

    def _note_breaks(self, printed: str) -> None:
        ending = printed[-2:]
        breaks = len(ending) - len(ending.rstrip("\n"))
        self._breaks = min(2, breaks if ending.strip("\n") else self._breaks + breaks)
