"""Compiles a Core statement into its text and the order of its parameters."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, SelectBase
from sqlalchemy.dialects.postgresql.base import PGCompiler
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler, SQLiteDialect
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import String, TypeEngine

from mandrake_sessions.engine.statement import Statement


class _ConstantsInText(SQLCompiler):
    """Writes constants into the text, so that every parameter is a named one."""

    def visit_bindparam(self, bindparam: BindParameter[Any], *args: Any, **options: Any) -> str:
        if not bindparam.required:
            options["literal_binds"] = True
        text: str = super().visit_bindparam(bindparam, *args, **options)  # type: ignore[no-untyped-call]
        return text


class _SQLiteCompiler(_ConstantsInText, SQLiteCompiler):
    pass


class _SQLite(SQLiteDialect):
    statement_compiler = _SQLiteCompiler
    supports_statement_cache = False


class _PostgreSQLCompiler(_ConstantsInText, PGCompiler):
    def limit_clause(self, select: Any, **options: Any) -> str:
        """Return LIMIT and OFFSET; the limit -1 is none, as on SQLite."""
        limit, offset = select._limit_clause, select._offset_clause
        text = "" if limit is None else f"\n LIMIT nullif({self._bigint(limit, options)}, -1)"
        return text if offset is None else f"{text} OFFSET {self._bigint(offset, options)}"

    def _bigint(self, clause: ClauseElement, options: dict[str, Any]) -> str:
        return f"CAST({self.process(clause, **options)} AS BIGINT)"

    def render_bind_cast(
        self, type_: TypeEngine[Any], dbapi_type: TypeEngine[Any], sqltext: str
    ) -> str:
        """Return a parameter with its type; a text is compared by the collation of its column."""
        if isinstance(dbapi_type, String):
            return f"{sqltext}::TEXT"
        text: str = super().render_bind_cast(type_, dbapi_type, sqltext)  # type: ignore[no-untyped-call]
        return text


class _PostgreSQL(PGDialect_psycopg):
    statement_compiler = _PostgreSQLCompiler  # type: ignore[assignment]  # psycopg's doubles a "%"
    supports_statement_cache = False


SQLITE = _SQLite(paramstyle="qmark")
POSTGRESQL: Dialect = _PostgreSQL(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


def compiled(core: ClauseElement, name: str = "", *, dialect: Dialect = SQLITE) -> Statement:
    """Return the compiled form of a Core statement; its variables are ``bindparam``s with names."""
    compiler = core.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    assert isinstance(compiler, SQLCompiler)
    parameters = tuple(compiler.positiontup or ())
    return Statement(name, str(compiler), parameters, is_read=isinstance(core, SelectBase))
