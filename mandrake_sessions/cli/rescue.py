"""``doctor``, ``restore``, ``salvage``: a database file that is damaged, lost or in doubt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mandrake_sessions.cli.errors import CommandError, ExitCode, advising
from mandrake_sessions.cli.output import (
    document_of,
    print_fields,
    print_json,
    print_table,
    print_text,
)
from mandrake_sessions.cli.reports import print_report
from mandrake_sessions.cli.target import TIMEOUT, Json, Timeout, new_pool
from mandrake_sessions.database.files.kept import kept_files
from mandrake_sessions.database.files.paths import real_path
from mandrake_sessions.errors import (
    DatabaseBusyError,
    DatabaseMissingError,
    NotADatabaseError,
    UnrecognizedDatabaseError,
)

if TYPE_CHECKING:
    from mandrake_sessions.rescue.report import SalvageReport, TableSalvage

_NO_BACKUP = (
    "BACKUP must be a copy of a database of this library; `import` reads the original system's."
)
_RESTORE_HINTS: dict[type[Exception], str] = {
    DatabaseMissingError: "Check the path of BACKUP; FILE is as it was.",
    NotADatabaseError: _NO_BACKUP,
    UnrecognizedDatabaseError: _NO_BACKUP,
    DatabaseBusyError: (
        "Stop the program that has FILE open, or wait longer for it with --timeout; "
        "`mandrake-sessions doctor FILE` says which it is."
    ),
}
_SALVAGE_HINTS: dict[type[Exception], str] = {
    DatabaseMissingError: "Check the path of FILE.",
}
_LEGEND = """
kept      as they were
mended    a part of it was lost or could not be right
rebuilt   lost, and needed by other rows: a new row stands in its place
lost      known to have been there, and nothing is in its place
          (or more, unknown: the pages that would show it are damaged too)
Each row is counted once: the new database has those kept, mended and rebuilt."""

_File = Annotated[Path, typer.Argument(metavar="FILE", help="A database file.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the program."""
    app.command()(doctor)
    app.command()(restore)
    app.command()(salvage)


def doctor(
    file: _File,
    *,
    full: Annotated[
        bool, typer.Option("--full", help="Compare every index with its table too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a database file and what to do; nothing is changed.

    The file need not be one that can be opened. Exit code 5 if it cannot be used as it is, 3 if
    there is none.
    """
    from mandrake_sessions.rescue.diagnosis import diagnose

    report = diagnose(file, full=full)
    print_report(report, as_json=as_json)
    if not os.path.lexists(report.path):
        raise typer.Exit(ExitCode.NOT_FOUND)
    if not report.is_usable:
        raise typer.Exit(ExitCode.UNUSABLE)


def restore(
    backup: Annotated[Path, typer.Argument(metavar="BACKUP", help="The file to restore.")],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="The database to put it at; folders that are missing are made."
        ),
    ],
    *,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a file that is there; a damaged one is kept."),
    ] = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Check a backup and put it in the place of a database that no program has open.

    `workspaces list --json` names the database of each workspace.
    """
    if os.path.lexists(file.expanduser()) and not overwrite:
        raise CommandError(
            f"There is already something at {file}.",
            ExitCode.EXISTS,
            "Choose another file, or give --overwrite.",
        )
    with advising(_RESTORE_HINTS), new_pool(timeout) as pool:
        source, target = real_path(backup), real_path(file)
        before = kept_files(target)
        database = pool.restore(source, target, overwrite=overwrite)
    kept = sorted(kept_files(database) - before)
    size = database.stat().st_size
    if as_json:
        print_json({"backup": source, "database": database, "bytes": size, "kept": kept})
    else:
        print_fields([("backup", source), ("database", database), ("bytes", size)])
        if kept:
            print_text("\nThe file that was there could not be used, and was kept:")
            for each in kept:
                print_text(f"  {each}")


def salvage(
    file: _File,
    new: Annotated[
        Path, typer.Argument(metavar="NEW", help="The file to make; its folder must exist.")
    ],
    *,
    as_json: Json = False,
) -> None:
    """Read what can be read of a damaged database into a new one, and say what was lost.

    FILE and its -wal are only read.
    """
    from mandrake_sessions.rescue.salvage import salvage as run

    if os.path.lexists(new.expanduser()):
        raise CommandError(
            f"There is already something at {new}.", ExitCode.EXISTS, "Choose another file."
        )
    with advising(_SALVAGE_HINTS):
        report = run(file, new)
    if as_json:
        print_json({**document_of(report), "is_complete": report.is_complete})
    else:
        _print_salvage(report)


def _print_salvage(report: SalvageReport) -> None:
    print_table(
        ("table", "kept", "mended", "rebuilt", "lost"),
        [
            (
                each.table,
                each.kept,
                each.mended,
                each.rebuilt,
                _lost(each),
            )
            for each in report.tables
        ],
    )
    if not report.is_complete:
        print_text(_LEGEND)
    fields: list[tuple[str, object]] = [
        ("source", report.source),
        ("new database", report.target),
        ("pages", report.pages),
        ("damaged pages", report.damaged_pages),
        ("damaged WAL frames", report.lost_frames),
    ]
    if report.left_out:
        fields.append(("tables left out", ", ".join(report.left_out)))
    if report.may_hold_deleted:
        fields.append(("note", "rows that were deleted before may be back"))
    print_text()
    print_fields(fields)


def _lost(table: TableSalvage) -> str:
    if table.is_all_known:
        return str(table.lost)
    return f"{table.lost} or more" if table.lost else "unknown"
