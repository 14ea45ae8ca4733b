"""From a Core statement to the text that is run, and the order of its parameters."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, SelectBase
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler, SQLiteDialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler

from mandrake_sessions.engine.statement import Statement


class _Compiler(SQLiteCompiler):
    """Writes what is constant into the text, so that every parameter is a named one."""

    def visit_bindparam(self, bindparam: BindParameter[Any], *args: Any, **options: Any) -> str:
        if not bindparam.required:
            options["literal_binds"] = True
        text: str = super().visit_bindparam(bindparam, *args, **options)  # type: ignore[no-untyped-call]
        return text


class _Dialect(SQLiteDialect):
    statement_compiler = _Compiler
    supports_statement_cache = False


DIALECT = _Dialect(paramstyle="qmark")


def compiled(core: ClauseElement) -> Statement:
    """Return a Core statement as it is run; what varies in it is a ``bindparam`` with a name."""
    compiler = core.compile(dialect=DIALECT, compile_kwargs={"render_postcompile": True})
    assert isinstance(compiler, SQLCompiler)
    return Statement(
        str(compiler), tuple(compiler.positiontup or ()), is_read=isinstance(core, SelectBase)
    )
