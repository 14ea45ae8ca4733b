"""``sessions list | show | tail | delete``: the conversations of one database."""

from __future__ import annotations

from typing import Annotated

import typer

from mandrake_sessions.cli import tail
from mandrake_sessions.cli.confirmation import confirm
from mandrake_sessions.cli.output import (
    document_of,
    print_fields,
    print_json,
    print_table,
    print_text,
)
from mandrake_sessions.cli.target import (
    TIMEOUT,
    Database,
    Json,
    Limit,
    Root,
    Timeout,
    WorkspaceName,
    Yes,
    open_sessions,
)
from mandrake_sessions.models import Exchange, SessionHistory, SessionUsage, Turn

app = typer.Typer(help="List, show, follow and delete sessions.", no_args_is_help=True)

SessionId = Annotated[str, typer.Argument(metavar="ID", help="The id of a session.")]


@app.command("list")
def list_(
    *,
    root: Root = None,
    workspace: WorkspaceName = None,
    database: Database = None,
    limit: Limit = 20,
    offset: Annotated[int, typer.Option(metavar="N", help="Rows left out in front.")] = 0,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """List sessions, the one that changed last first."""
    with open_sessions(root, workspace, database, timeout) as sessions:
        found = sessions.list_sessions(limit=limit, offset=offset)
        total = sessions.count_sessions()
    if as_json:
        print_json({"sessions": document_of(found), "total": total})
        return
    print_table(
        ("id", "title", "rounds begun", "created (UTC)", "updated (UTC)"),
        [
            (each.id, each.title, each.next_round_index, each.created_at, each.updated_at)
            for each in found
        ],
    )
    print_text(f"\n{len(found)} of {total} sessions")


@app.command()
def show(
    id: SessionId,
    *,
    root: Root = None,
    workspace: WorkspaceName = None,
    database: Database = None,
    last: Annotated[
        int | None,
        typer.Option(metavar="N", help="The last rounds only; all when not given."),
    ] = None,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Show a session: its rounds with their turns, and what they used."""
    with open_sessions(root, workspace, database, timeout) as sessions:
        history = sessions.render_session_history(id, last=last)
        usage = sessions.get_session_usage(id)
    if as_json:
        print_json(
            {**document_of(history), "usage": {**document_of(usage), "cost": usage.total_cost}}
        )
        return
    _print_head(history, usage)
    for exchange in history.rounds:
        _print_round(exchange)


def _print_head(history: SessionHistory, usage: SessionUsage) -> None:
    session = history.session
    print_fields(
        [
            ("id", session.id),
            ("title", session.title),
            ("description", session.description),
            *((f"metadata.{name}", value) for name, value in session.metadata.items()),
            ("created", session.created_at),
            ("updated", session.updated_at),
            ("rounds", usage.rounds),
            ("turns", usage.turns),
            ("tokens", f"{usage.input_tokens} in, {usage.output_tokens} out"),
            ("cost", usage.total_cost),
        ]
    )


def _print_round(exchange: Exchange) -> None:
    print_text(f"\n── round {exchange.index} · {exchange.id}", style="bold cyan")
    print_text(exchange.request.content)
    for turn in exchange.turns:
        print_text(f"\n   turn {turn.index} · {_about(turn)}", style="bold")
        if turn.content:
            print_text(turn.content)
        for call in turn.tool_calls:
            print_text(f"   tool call {call.raw or call.call} → {call.response}", style="dim")


def _about(turn: Turn) -> str:
    parts = [turn.status.value, turn.model, f"{turn.input_tokens}+{turn.output_tokens} tokens"]
    if turn.error_message:
        parts.append(turn.error_message)
    return " · ".join(part for part in parts if part)


app.command()(tail.tail)


@app.command()
def delete(
    id: SessionId,
    *,
    root: Root = None,
    workspace: WorkspaceName = None,
    database: Database = None,
    yes: Yes = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Delete a session with its rounds and turns."""
    with open_sessions(root, workspace, database, timeout) as sessions:
        usage = sessions.get_session_usage(id)
        confirm(
            f"Delete session {id!r} with {usage.rounds} rounds and {usage.turns} turns?",
            yes=yes,
            as_json=as_json,
        )
        sessions.delete_session(id)
    if as_json:
        print_json({"deleted": id, "rounds": usage.rounds, "turns": usage.turns})
    else:
        print_text(f"Deleted session {id} with {usage.rounds} rounds and {usage.turns} turns.")
