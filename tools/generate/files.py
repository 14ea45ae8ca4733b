"""The generated files and their texts; a test compares these with the files."""

from __future__ import annotations

from pathlib import Path

from tools.generate.ddl import ddl_source
from tools.generate.messages import messages_source
from tools.generate.sql import sql_source
from tools.generate.tables import tables_source

_PACKAGE = Path(__file__).parents[2] / "mandrake_sessions"


def generated() -> dict[Path, str]:
    """Return the text of each generated file."""
    return {
        _PACKAGE / "database" / "migrations" / "ddl.py": ddl_source(),
        _PACKAGE / "error_messages.py": messages_source(),
        _PACKAGE / "tables.py": tables_source(),
        _PACKAGE / "records" / "sql.py": sql_source(),
    }
