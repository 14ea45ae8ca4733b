"""The texts of a schema, compared by what they define.

SQLite puts a column that a migration adds behind the constraints, and the name of a table that was
rebuilt between quotes. Neither changes what the text defines.
"""

from __future__ import annotations

import re


def definitions(sql: str | None) -> tuple[str, ...]:
    """Return the head, the sorted columns and constraints, and the options of a CREATE statement.

    The order of columns is not in it; ``PRAGMA table_xinfo`` has it.
    """
    text = " ".join((sql or "").split())
    if not text.startswith("CREATE TABLE"):
        return (text,)
    start, end = text.index("("), text.rindex(")")
    parts = [""]
    depth = 0
    for sign in text[start + 1 : end]:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    head = re.sub(r'"(\w+)"', r"\1", text[:start].strip())
    return (head, *sorted(part.strip() for part in parts), text[end + 1 :].strip())
