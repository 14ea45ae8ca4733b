"""``sessions list | show | tail | delete``: the conversations of one database."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from mandrake_sessions.cli import tail
from mandrake_sessions.cli.confirmation import confirm
from mandrake_sessions.cli.help import Group
from mandrake_sessions.cli.output import (
    call_with_result,
    counted_of,
    document_of,
    print_fields,
    print_json,
    print_line,
    print_table,
    print_text,
)
from mandrake_sessions.cli.short_ids import shortened, whole_id
from mandrake_sessions.cli.target import (
    TIMEOUT,
    Database,
    Json,
    Limit,
    ReadOnly,
    Root,
    SessionId,
    Timeout,
    WorkspaceName,
    Yes,
    open_sessions,
    target_options,
)
from mandrake_sessions.database.health.wording import counted
from mandrake_sessions.models import Exchange, SessionHistory, SessionUsage, Turn

app: typer.Typer = typer.Typer(
    help="List, show, follow and delete sessions.", no_args_is_help=True, cls=Group
)


_LIMIT: Final = 20


@app.command("list")
def list_(
    *,
    root: Root = None,
    workspace: WorkspaceName = None,
    database: Database = None,
    limit: Limit = _LIMIT,
    offset: Annotated[int, typer.Option(metavar="N", help="Rows left out in front.")] = 0,
    read_only: ReadOnly = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """List sessions, the one that changed last first."""
    with open_sessions(root, workspace, database, timeout, read_only=read_only) as sessions:
        found = sessions.list_sessions(limit=limit, offset=offset)
        total = sessions.count_sessions()
        short = shortened(sessions, [each.id for each in found])
    if as_json:
        print_json({"sessions": document_of(found), "total": total})
        return
    if not total:
        print_text("No sessions yet: hosts make them, and `mandrake-sessions import` reads them.")
        return
    print_table(
        ("id", "title", "rounds begun", "updated"),
        [(short[each.id], each.title, each.next_round_index, each.updated_at) for each in found],
        cut="title",
    )
    print_text(f"\n{counted_of(len(found), total, 'session')}")
    shown = offset + len(found)
    if found and shown < total:
        options = target_options(root, workspace, database)
        limited = "" if limit == _LIMIT else f" --limit {limit}"
        command = f"mandrake-sessions sessions list{options}{limited} --offset {shown}"
        print_line(f"`{command}` shows more.")


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
    read_only: ReadOnly = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Show a session: its rounds with their turns, and what they used."""
    with open_sessions(root, workspace, database, timeout, read_only=read_only) as sessions:
        id = whole_id(sessions, id)
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
    print_text()
    print_line(f"── round {exchange.index} · {exchange.id}", style="bold cyan")
    print_text(exchange.request.content)
    for turn in exchange.turns:
        print_text()
        print_line(f"   turn {turn.index} · {_about(turn)}", style="bold")
        if turn.content:
            print_text(turn.content)
        for call in turn.tool_calls:
            print_line(f"   tool call {call_with_result(call)}", style="dim")


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
        id = whole_id(sessions, id)
        usage = sessions.get_session_usage(id)
        size = f"{counted(usage.rounds, 'round')} and {counted(usage.turns, 'turn')}"
        confirm(
            f"Delete session {id} with {size}?",
            yes=yes,
            as_json=as_json,
        )
        sessions.delete_session(id)
    if as_json:
        print_json({"deleted": id, "rounds": usage.rounds, "turns": usage.turns})
    else:
        print_line(f"Deleted session {id} with {size}.")
