"""Writes ``migrations/ddl.py``, ``tables.py``, ``records/sql.py``: what ``make sql`` does."""

from mandrake_sessions.statements.generator.modules import generated

for path, text in generated().items():
    path.write_text(text, encoding="utf-8")
