"""What commands print: one JSON document for machines, tables and plain text for people.

Titles and answers are somebody's text: no markup in them is read, and no control character in
them reaches the terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mandrake_sessions.ids import to_datetime

_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "�")
_BREAKS = {ord("\n"): "\n", ord("\t"): "\t"}


def is_terminal() -> bool:
    """Whether a person reads the output as it comes."""
    return sys.stdout.isatty()


def document_of(record: Any) -> Any:
    """Return a record as plain values for JSON; its times as ISO 8601, UTC."""
    if isinstance(record, msgspec.Struct):
        told: dict[str, Any] = {}
        for name in record.__struct_fields__:
            value = getattr(record, name)
            if name.endswith("_us"):
                told[f"{name[:-3]}_at"] = None if value is None else to_datetime(value)
            else:
                told[name] = document_of(value)
        return told
    if isinstance(record, list | tuple):
        return [document_of(each) for each in record]
    return record


def print_json(document: Any) -> None:
    """Print the one document of a command."""
    encoded = msgspec.json.format(msgspec.json.encode(document, enc_hook=_encoded), indent=2)
    _write(encoded + b"\n")


def print_json_line(document: Any) -> None:
    """Print one of many documents, in a line of its own."""
    _write(msgspec.json.encode(document, enc_hook=_encoded) + b"\n")


def _write(encoded: bytes) -> None:
    """Write all of it: with PYTHONUNBUFFERED one write, and print(), stops where a pipe is full."""
    sys.stdout.flush()
    left = memoryview(encoded)
    while left:
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()


def _encoded(value: object) -> object:
    if isinstance(value, Path):
        # A name that is no UTF-8 cannot be said in JSON but roughly.
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
    """Print a piece of a text that grows; its line is not ended."""
    _write(printable(text, lines=True).encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; columns in which every value is a number stand to the right.

    An ``id`` stays on one line, however narrow the terminal is: it is there to be copied.
    """
    values = [tuple(row) for row in rows]
    cells = [[_shown(value) for value in row] for row in values]
    numeric = [
        bool(values) and all(isinstance(row[at], int | float) for row in values)
        for at in range(len(columns))
    ]
    if is_terminal():
        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for name, is_number in zip(columns, numeric, strict=True):
            table.add_column(
                Text(name),
                justify="right" if is_number else "left",
                overflow="fold",
                no_wrap=name == "id",
            )
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        console().print(table)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        padded = (
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, numeric, strict=True)
        )
        _print_line("  ".join(padded).rstrip())


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values below each other."""
    shown = [(name, _shown(value)) for name, value in fields]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        line = Text(f"{name.ljust(width)}  ", style="bold").append(value, style="not bold")
        if is_terminal():
            console().print(line, soft_wrap=True)
        else:
            _print_line(line.plain.rstrip())


def _print_line(line: str) -> None:
    _write(f"{line}\n".encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def console() -> Console:
    """Return the console of a terminal; made each time, because tests replace the streams."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def printable(text: str, *, lines: bool = False) -> str:
    """Return text with which nobody can steer the terminal.

    Args:
        text: somebody's text.
        lines: whether line breaks and tabs are left in.
    """
    shown = text.translate(_CONTROLS | _BREAKS if lines else _CONTROLS)
    # What the output cannot show becomes an escape, not an error: LC_ALL=C is common in scripts.
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return printable(str(value))
