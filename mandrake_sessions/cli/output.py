"""The output of commands: one JSON document for programs, tables and plain text for users.

Titles and answers are users' text: markup in them is not interpreted, and no control character in
them reaches the terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mandrake_sessions.database.health.wording import counted
from mandrake_sessions.ids import to_datetime
from mandrake_sessions.models import ToolCall
from mandrake_sessions.visible import escaped, visible

_WIDTH: Final = 80
_NARROWEST: Final = 10
_GAP: Final = 2
_LONGEST_NAME: Final = 40
_NOW: Final = 10
_UNITS: Final = (
    ("year", 365 * 86_400),
    ("month", 30 * 86_400),
    ("day", 86_400),
    ("hour", 3_600),
    ("minute", 60),
)


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def document_of(record: Any) -> Any:
    """Return a record as plain values for JSON; its times as ISO 8601, UTC."""
    if isinstance(record, msgspec.Struct):
        document: dict[str, Any] = {}
        for name in record.__struct_fields__:
            value = getattr(record, name)
            if name.endswith("_us"):
                document[f"{name[:-3]}_at"] = None if value is None else to_datetime(value)
            else:
                document[name] = document_of(value)
        return document
    if isinstance(record, list | tuple):
        return [document_of(each) for each in record]
    return record


def print_json(document: Any) -> None:
    """Print the one document of a command."""
    _write_json(msgspec.json.format(msgspec.json.encode(document, enc_hook=_encoded), indent=2))


def print_json_line(document: Any) -> None:
    """Print one of many documents, on its own line."""
    _write_json(msgspec.json.encode(document, enc_hook=_encoded))


def as_json(value: Any) -> str:
    """Return a stored value in one line of JSON, for users."""
    return msgspec.json.encode(value).decode()


def _write_json(encoded: bytes) -> None:
    """Write a document; no control character of JSON's strings reaches a terminal."""
    _write(f"{escaped(encoded.decode())}\n".encode())


def _write(encoded: bytes) -> None:
    """Write all of it: with PYTHONUNBUFFERED one write, and print(), stops when a pipe is full."""
    sys.stdout.flush()
    left = memoryview(encoded)
    while left:
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()


def _encoded(value: object) -> object:
    if isinstance(value, Path):
        # JSON can only approximate a name that is not UTF-8.
        return os.fsencode(value).decode(errors="replace")
    raise NotImplementedError(type(value).__name__)


def print_text(text: str = "", *, style: str = "") -> None:
    """Print text of several lines."""
    shown = printable(text, lines=True)
    if is_terminal():
        console().print(Text(shown, style=style), soft_wrap=True)
    else:
        _print_line(shown)


def print_piece(text: str) -> None:
    """Print a piece of a growing text, without ending its line."""
    _write(printable(text, lines=True).encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def print_line(text: str, *, style: str = "") -> None:
    """Print one line; line breaks in the text become spaces."""
    print_text(printable(text), style=style)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, cut: str | None = None
) -> None:
    """Print a table; columns with only numbers are aligned to the right.

    Args:
        columns: the heads.
        rows: a value for each column; a time is shown as how long ago it is.
        cut: the column to shorten, so that each row is one line of the terminal, or of 80
            columns without a terminal.
    """
    values = [tuple(row) for row in rows]
    cells = [[_shown_in_table(value) for value in row] for row in values]
    numeric = [
        bool(values) and all(isinstance(row[at], int | float) for row in values)
        for at in range(len(columns))
    ]
    if cut is None and is_terminal():
        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for name, is_number in zip(columns, numeric, strict=True):
            table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        console().print(table)
        return
    lines = [list(columns), *cells]
    widths = [max(cell_len(line[at]) for line in lines) for at in range(len(columns))]
    if cut is not None:
        place = columns.index(cut)
        others = sum(widths) - widths[place] + _GAP * (len(widths) - 1)
        widths[place] = min(widths[place], max(line_width() - others, _NARROWEST))
    for number, line in enumerate(lines):
        padded = (
            _padded(cell, width, is_number=is_number)
            for cell, width, is_number in zip(line, widths, numeric, strict=True)
        )
        print_text((" " * _GAP).join(padded).rstrip(), style="" if number else "bold")


def line_width() -> int:
    """Return how many columns a line may have; 80 without a terminal."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return console().width if is_terminal() else _WIDTH


def _padded(cell: str, width: int, *, is_number: bool) -> str:
    """Return a cell padded to the width of its column, counted in columns of a terminal."""
    if cell_len(cell) > width:
        mark = printable("…") if len(printable("…")) == 1 else "..."
        cell = f"{set_cell_size(cell, width - len(mark)).rstrip()}{mark}"
    space = " " * (width - cell_len(cell))
    return space + cell if is_number else cell + space


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values below each other, each on one line."""
    shown = [(printable(name), _shown(value)) for name, value in fields]
    lengths = [cell_len(name) for name, _ in shown]
    # One very long name does not shift all values.
    width = max((length for length in lengths if length <= _LONGEST_NAME), default=0)
    for name, value in shown:
        padding = " " * max(width - cell_len(name), 0)
        line = Text(f"{name}{padding}  ", style="bold").append(value, style="not bold")
        if is_terminal():
            console().print(line, soft_wrap=True)
        else:
            _print_line(line.plain.rstrip())


def _print_line(line: str) -> None:
    _write(f"{line}\n".encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def console() -> Console:
    """Return the console of a terminal; made each time, because tests replace the streams."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def printable(text: str, *, lines: bool = False, encoding: str | None = None) -> str:
    """Return text that cannot steer the terminal.

    Args:
        text: any text.
        lines: whether to keep line breaks and tabs.
        encoding: of the stream; stdout's when None.
    """
    # A character that the output cannot show becomes an escape: LC_ALL=C is common in scripts.
    encoding = encoding or sys.stdout.encoding or "utf-8"
    return visible(text, lines=lines).encode(encoding, "backslashreplace").decode(encoding)


def print_error(text: str) -> None:
    """Print one line to stderr."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    print(printable(text, encoding=encoding), file=sys.stderr)


def counted_of(count: int, total: int, noun: str) -> str:
    """Return how many of all are shown, such as ``3 sessions`` or ``2 of 3 sessions``."""
    return counted(total, noun) if count == total else f"{count} of {counted(total, noun)}"


def call_with_result(call: ToolCall) -> str:
    """Return a tool call and its result, as JSON."""
    if call.raw is not None:
        return call.raw
    result = "interrupted" if call.is_interrupted else as_json(call.response)
    return f"{as_json(call.call)} → {result}"


def ago(moment: datetime) -> str:
    """Return how long ago a time is, such as ``3 hours ago``."""
    seconds = int((datetime.now(UTC) - moment).total_seconds())
    if seconds < 0:
        # The clock of another machine, or one that went back.
        return _absolute(moment)
    if seconds < _NOW:
        return "just now"
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{counted(seconds // length, unit)} ago"
    return f"{counted(seconds, 'second')} ago"


def _absolute(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _shown_in_table(value: object) -> str:
    return ago(value) if isinstance(value, datetime) else _shown(value)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, datetime):
        return f"{_absolute(value)} UTC, {ago(value)}"
    return printable(as_json(value) if isinstance(value, dict | list) else str(value))
