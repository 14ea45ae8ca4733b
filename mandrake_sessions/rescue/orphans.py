"""Rebuilds the missing parents of salvaged rows, from the indexes or from the rows themselves.

Content matters more than order: a turn whose response, round and session are gone gets new ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import apsw

from mandrake_sessions import ids
from mandrake_sessions.rescue.row_repair import LOST_REQUEST, moment_of

LOST_TITLE: Final = "(The title was lost.)"
HOMELESS_TITLE: Final = "(Rounds whose session was lost)"

PARENTS: Final = {
    "rounds": ("session_id", "sessions"),
    "requests": ("round_id", "rounds"),
    "responses": ("round_id", "rounds"),
    "turns": ("response_id", "responses"),
}
"""The column that names the parent, and the parent's table."""

_ENTITIES: Final = ("sessions", *PARENTS)
# A round and its response get their ids in one call.
_TOGETHER_US: Final = 1_000
# The most by which a counter may exceed its rows; a higher one is damaged, and would use up the
# indexes.
_PLAUSIBLE_GAP: Final = 1_000_000

_KNOWN: Final = """
CREATE TEMP TABLE known AS
SELECT "table", "row",
    max(iif("column" = 'id', value, NULL)) AS id,
    max(iif("column" IN ('session_id', 'round_id', 'response_id'), value, NULL)) AS parent,
    max(iif("column" = 'index', value, NULL)) AS "index",
    max(iif("column" = 'updated_at', value, NULL)) AS updated_at
FROM evidence GROUP BY "table", "row";
CREATE INDEX temp.known_row ON known ("table", "row");
CREATE INDEX temp.known_parent ON known ("table", parent);
"""


class Orphans:
    """Repairs the new database from its own rows and the temporary table ``evidence``.

    Args:
        raw: the new database, in a transaction, with foreign keys off.

    Attributes:
        lost: by table: how many rows the indexes list that have no row in their place.
        rebuilt: by table: how many rows were made.
    """

    def __init__(self, raw: apsw.Connection) -> None:
        self._raw = raw
        self.lost: dict[str, int] = {}
        self.rebuilt: dict[str, int] = dict.fromkeys(_ENTITIES, 0)

    def repair(self) -> None:
        """Give every row a parent, and make every counter higher than what it counts."""
        self._know()
        self._correct()
        self._rebuild_known()
        self._rebuild_named()
        unnamed = self._complete_rounds()
        for table in _ENTITIES:
            # A round has one request and one response. A new one replaces a listed one whose round
            # the index does not name.
            self.lost[table] = max(0, len(self._missing(table)) - unnamed.get(table, 0))
        self._raise_counters()

    # -- from the indexes -------------------------------------------------------------------

    def _know(self) -> None:
        self._raw.execute(_KNOWN)
        for table in _ENTITIES:
            for other in _ENTITIES:
                if other != table:
                    # Such an id is on a page of another table's index that was reached from here.
                    self._raw.execute(
                        f'UPDATE known SET id = NULL WHERE "table" = ? '
                        f"AND id IN (SELECT id FROM {other})",
                        (table,),
                    )

    def _correct(self) -> None:
        """Take two values from the index: an id without references, and a missing parent.

        The id is replaced only if rows refer to the id in the index and none to the present one.
        """
        for child, (column, table) in PARENTS.items():
            self._raw.execute(
                f"UPDATE OR IGNORE {table} SET id = k.id FROM known k "
                f'WHERE k."table" = \'{table}\' AND k."row" = {table}.rowid '
                f"AND k.id <> {table}.id AND k.id NOT IN (SELECT id FROM {table}) "
                f"AND EXISTS (SELECT 1 FROM {child} c WHERE c.{column} = k.id) "
                f"AND NOT EXISTS (SELECT 1 FROM {child} c WHERE c.{column} = {table}.id)"
            )
            self._raw.execute(
                f"UPDATE OR IGNORE {child} SET {column} = k.parent FROM known k "
                f'WHERE k."table" = \'{child}\' AND k."row" = {child}.rowid '
                f"AND k.id = {child}.id AND k.parent <> {child}.{column} "
                f"AND {child}.{column} NOT IN (SELECT id FROM {table}) AND k.parent IN "
                f"(SELECT id FROM {table} UNION SELECT id FROM known WHERE \"table\" = '{table}')"
            )

    def _missing(self, table: str) -> list[tuple[Any, ...]]:
        """Return id, parent, index and time of change of rows that only the indexes have."""
        return self._raw.execute(
            'SELECT id, parent, "index", updated_at FROM known WHERE "table" = ? '
            f"AND id IS NOT NULL AND id <> '' AND id NOT IN (SELECT id FROM {table}) "
            f'AND "row" NOT IN (SELECT rowid FROM {table}) ORDER BY id',
            (table,),
        ).fetchall()

    def _rebuild_known(self) -> None:
        for id, _, _, updated_at in self._missing("sessions"):
            self._add_session(id, LOST_TITLE, updated_at)
        for id, parent, index, _ in self._missing("rounds"):
            if isinstance(parent, str):
                self._add_round(id, parent, index)
        for id, parent, _, _ in self._missing("requests"):
            if isinstance(parent, str):
                self._add_request(id, parent)
        for id, parent, _, _ in self._missing("responses"):
            if isinstance(parent, str):
                self._add_response(id, parent)
        for id, parent, index, _ in self._missing("turns"):
            # Other turns have no content left; a streaming turn may have its chunks.
            if isinstance(parent, str) and self._has("turn_chunks", "turn_id", id):
                self._add_turn(id, parent, index)

    # -- from the rows ----------------------------------------------------------------------

    def _rebuild_named(self) -> None:
        """Make the parents that only their children name."""
        for id in self._absent("turn_chunks", "turn_id", "turns"):
            self._add_turn(id, ids.new_id(), None)
        # A finished turn has its whole text itself.
        self._raw.execute(
            "DELETE FROM turn_chunks WHERE turn_id IN "
            "(SELECT id FROM turns WHERE stream_ended_at IS NOT NULL)"
        )
        for id in self._absent("turns", "response_id", "responses"):
            self._add_response(id, self._round_made_with(id) or ids.new_id())
        homeless = ids.new_id()
        wanted = {
            *self._absent("requests", "round_id", "rounds"),
            *self._absent("responses", "round_id", "rounds"),
        }
        for id in sorted(wanted):
            self._add_round(id, homeless, None)
        for id in self._absent("rounds", "session_id", "sessions"):
            self._add_session(id, HOMELESS_TITLE if id == homeless else LOST_TITLE, None)

    def _complete_rounds(self) -> dict[str, int]:
        """Give each round its request and its response, without which it cannot be read.

        Returns:
            How many rows were made, by table.
        """
        made: dict[str, int] = {}
        for table, add in (("requests", self._add_request), ("responses", self._add_response)):
            lacking = self._raw.execute(
                f"SELECT id FROM rounds WHERE id NOT IN (SELECT round_id FROM {table})"
            ).fetchall()
            for (round_id,) in lacking:
                add(ids.new_id(), str(round_id))
            made[table] = len(lacking)
        return made

    def _round_made_with(self, response_id: str) -> str | None:
        """Return the round, itself without a response, that was made in one call with this one.

        The id of the round was made just before, and ids sort in the order of their making.
        """
        made = moment_of(response_id)
        before = self._raw.execute(
            "SELECT max(id) FROM rounds WHERE id < ? "
            "AND id NOT IN (SELECT round_id FROM responses)",
            (response_id,),
        ).fetchall()[0][0]
        is_near = before is not None and abs(moment_of(before) - made) <= _TOGETHER_US
        return str(before) if is_near else None

    def _absent(self, table: str, column: str, parents: str) -> list[str]:
        return [
            str(id)
            for (id,) in self._raw.execute(
                f"SELECT DISTINCT {column} FROM {table} "
                f"WHERE {column} NOT IN (SELECT id FROM {parents}) ORDER BY {column}"
            ).fetchall()
        ]

    def _has(self, table: str, column: str, value: str) -> bool:
        found = self._raw.execute(f"SELECT 1 FROM {table} WHERE {column} = ? LIMIT 1", (value,))
        return bool(found.fetchall())

    # -- new rows ---------------------------------------------------------------------------

    def _add_session(self, id: str, title: str, updated_at: int | None) -> None:
        made = moment_of(id)
        self._add("sessions", (id, title, None, "{}", 0, 0, made, updated_at or made))

    def _add_round(self, id: str, session_id: str, index: int | None) -> None:
        made = moment_of(id)
        if index is None or self._is_taken("rounds", session_id, index):
            index = self.next_index("rounds", session_id)
        self._add("rounds", (id, session_id, index, made, made))

    def _add_request(self, id: str, round_id: str) -> None:
        made = moment_of(id)
        self._add("requests", (id, round_id, LOST_REQUEST, made, made))

    def _add_response(self, id: str, round_id: str) -> None:
        made = moment_of(id)
        self._add("responses", (id, round_id, 0, made, made))

    def _add_turn(self, id: str, response_id: str, index: int | None) -> None:
        made = moment_of(id)
        if index is None or self._is_taken("turns", response_id, index):
            index = self.next_index("turns", response_id)
        self._raw.execute(
            'INSERT INTO turns (id, response_id, "index", status, stream_started_at, '
            "current_tokens, input_tokens, output_tokens, input_cost, output_cost, revision, "
            "created_at, updated_at, tool_calls, content, raw_response) "
            "VALUES (?, ?, ?, 'streaming', ?, 0, 0, 0, 0.0, 0.0, 0, ?, ?, '[]', '', '')",
            (id, response_id, index, made, made, made),
        )
        self.rebuilt["turns"] += 1

    def _add(self, table: str, values: Iterable[Any]) -> None:
        given = tuple(values)
        places = ", ".join("?" * len(given))
        # The parent may be unique and taken: then another row has the place, and this one, which
        # has no content, is left out.
        self._raw.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", given)
        self.rebuilt[table] += self._raw.changes()

    def next_index(self, table: str, parent: str) -> int:
        """Return the index behind the last one below a parent."""
        column, _ = PARENTS[table]
        rows = self._raw.execute(
            f'SELECT coalesce(max("index"), -1) + 1 FROM {table} WHERE {column} = ?', (parent,)
        ).fetchall()
        return int(str(rows[0][0]))

    def _is_taken(self, table: str, parent: str, index: int) -> bool:
        column, _ = PARENTS[table]
        return bool(
            self._raw.execute(
                f'SELECT 1 FROM {table} WHERE {column} = ? AND "index" = ?', (parent, index)
            ).fetchall()
        )

    def _raise_counters(self) -> None:
        for parents, counter, child in (
            ("sessions", "next_round_index", "rounds"),
            ("responses", "next_turn_index", "turns"),
        ):
            column, _ = PARENTS[child]
            # Also higher than the indexes of lost rows: no index is used twice.
            self._raw.execute(
                f"CREATE TEMP TABLE used AS SELECT parent, max(last) + 1 AS least FROM "
                f'(SELECT {column} AS parent, max("index") AS last FROM {child} GROUP BY 1 '
                f'UNION ALL SELECT parent, max("index") FROM known '
                f'WHERE "table" = \'{child}\' AND "index" BETWEEN 0 AND {_PLAUSIBLE_GAP} '
                f"GROUP BY 1) WHERE parent IS NOT NULL AND last IS NOT NULL GROUP BY parent"
            )
            self._raw.execute("CREATE INDEX temp.used_parent ON used (parent)")
            self._raw.execute(
                f"UPDATE {parents} SET {counter} = used.least FROM used "
                f"WHERE used.parent = {parents}.id AND ({counter} < used.least "
                f"OR {counter} > used.least + {_PLAUSIBLE_GAP})"
            )
            self._raw.execute("DROP TABLE temp.used")
