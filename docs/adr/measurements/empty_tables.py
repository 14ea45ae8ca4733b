"""ADR 0004: the pages that the registry of workspaces costs in a database that never fills it."""

import sys
import tempfile
from pathlib import Path

from mandrake_sessions import SessionManager


def main() -> None:
    """Measure and print."""
    with (
        tempfile.TemporaryDirectory() as name,
        SessionManager(Path(name) / "db.sqlite") as sessions,
        sessions.handle.sqlalchemy(read_only=True) as lent,
    ):
        pages = lent.exec_driver_sql(
            "SELECT count(*) FROM sqlite_schema WHERE tbl_name = 'workspaces' AND rootpage > 0"
        ).scalar_one()
        of_all = lent.exec_driver_sql("PRAGMA page_count").scalar_one()
        size = lent.exec_driver_sql("PRAGMA page_size").scalar_one()
    sys.stdout.write(f"{pages} pages of {of_all}, {pages * size} bytes\n")


main()
