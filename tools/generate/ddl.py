"""The text of ``database/migrations/ddl.py``, which makes the tables of a new file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from sqlalchemy.schema import CreateIndex, CreateTable

from mandrake_sessions import schema
from mandrake_sessions.database.migrations.revisions import scripts_in_order
from tools.generate.compiler import SQLITE
from tools.generate.layout import enclosed, several, text_source, tuple_source

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"

_HEAD = '''\
"""What a new file gets. Made by ``make sql`` from ``schema.py`` and ``migrations/``."""

# fmt: off

'''


def ddl_source() -> str:
    """Return the module's text."""
    return "".join([_HEAD, *_ddl()])


def _ddl() -> Iterator[str]:
    project = tomllib.loads(_PROJECT.read_text("utf-8"))["project"]
    yield f'CREATED_BY = "mandrake_sessions {project["version"]}"\n'
    yield f"REVISIONS = {tuple_source(scripts_in_order())}\n"
    yield f"SCHEMA = {several(enclosed(text_source(text)) for text in _creations())}\n"


def _creations() -> Iterator[str]:
    """Return the CREATE statements, in the order in which migrations run those of ``0001``."""
    # Alembic's own table has no other name in public.
    version = MigrationContext.configure(dialect_name="sqlite")._version
    for table in (version, *schema.metadata.tables.values()):
        # SQLite stores the text up to its last word, and drops the space before the first one.
        yield str(CreateTable(table).compile(dialect=SQLITE)).lstrip()
        for index in sorted(table.indexes, key=lambda each: str(each.name)):
            yield str(CreateIndex(index).compile(dialect=SQLITE)).lstrip()
