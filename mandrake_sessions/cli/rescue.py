"""``doctor``, ``restore``, ``salvage``: a database file that is damaged, lost or in doubt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mandrake_sessions.cli.errors import CommandError, ExitCode
from mandrake_sessions.cli.output import (
    document_of,
    print_fields,
    print_json,
    print_table,
    print_text,
)
from mandrake_sessions.cli.target import TIMEOUT, Json, Timeout, new_pool
from mandrake_sessions.database.health.report import HealthStatus

if TYPE_CHECKING:
    from mandrake_sessions.database.salvage.salvaging import SalvageReport

_File = Annotated[Path, typer.Argument(metavar="FILE", help="A database file.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
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

    The file need not be one that can be opened. Exit code 5 if it cannot be used as it is.
    """
    from mandrake_sessions.database.health.diagnosis import diagnose

    report = diagnose(file, full=full)
    if as_json:
        print_json({**document_of(report), "status": report.status, "is_usable": report.is_usable})
    else:
        print_table(
            ("check", "status", "detail"),
            [(each.name, each.status, each.detail) for each in report.checks],
        )
        print_fields([("\ndatabase", report.path), ("status", report.status)])
        advised = [each for each in report.checks if each.status is not HealthStatus.OK]
        if advised:
            print_text("\nWhat to do")
            print_fields([(each.name, each.advice) for each in advised])
    if not os.path.lexists(report.path):
        raise typer.Exit(ExitCode.NOT_FOUND)
    if not report.is_usable:
        raise typer.Exit(ExitCode.UNUSABLE)


def restore(
    backup: Annotated[Path, typer.Argument(metavar="BACKUP", help="The file to restore.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The database to put it at.")],
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Check a backup and put it in the place of a database that nobody has open."""
    if os.path.lexists(file.expanduser()) and not overwrite:
        raise CommandError(
            f"There is already something at {file}.",
            ExitCode.EXISTS,
            "Choose another file, or give --overwrite.",
        )
    with new_pool(timeout) as pool:
        database = pool.restore(backup, file, overwrite=overwrite)
    size = database.stat().st_size
    if as_json:
        print_json({"backup": backup, "database": database, "bytes": size})
    else:
        print_fields([("backup", backup), ("database", database), ("bytes", size)])


def salvage(
    file: _File,
    new: Annotated[
        Path, typer.Argument(metavar="NEW", help="The file to make; its folder must exist.")
    ],
    *,
    as_json: Json = False,
) -> None:
    """Read what can be read of a damaged database into a new one, and say what was lost.

    FILE and the -wal beside it are only read.
    """
    from mandrake_sessions.database.salvage.salvaging import salvage as run

    if os.path.lexists(new.expanduser()):
        raise CommandError(
            f"There is already something at {new}.", ExitCode.EXISTS, "Choose another file."
        )
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
                str(each.lost) if each.is_all_known else f"{each.lost} or more",
            )
            for each in report.tables
        ],
    )
    told: list[tuple[str, object]] = [
        ("\nsource", report.source),
        ("new database", report.target),
        ("pages", report.pages),
        ("damaged pages", report.damaged_pages),
        ("damaged log frames", report.lost_frames),
    ]
    if report.left_out:
        told.append(("tables left out", ", ".join(report.left_out)))
    if report.may_hold_deleted:
        told.append(("note", "what was deleted before may be back"))
    print_fields(told)
