"""The known stores, and which of them can be measured here.

A new rival is a module in ``benchmarks/stores/`` and its line here.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

_STORES: Final = "benchmarks.stores"

OURS: Final = f"{_STORES}.mandrake:MandrakeStore"
OURS_HOSTED: Final = f"{_STORES}.mandrake:MandrakeHostStore"
OURS_PUBLIC: Final = f"{_STORES}.mandrake:MandrakePublicStore"
OURS_ASYNC: Final = f"{_STORES}.mandrake:MandrakeAsyncStore"

BARE: Final = f"{_STORES}.bare:BareStore"
BARE_AUTO: Final = f"{_STORES}.bare:BareAutocheckpoint"
BARE_LOCKED: Final = f"{_STORES}.bare:BareLocked"
BARE_LOCKED_AUTO: Final = f"{_STORES}.bare:BareLockedAutocheckpoint"

SQLITE3: Final = f"{_STORES}.sqlite:SqliteStore"
ORM: Final = f"{_STORES}.orm:OrmStore"
OPENAI: Final = f"{_STORES}.openai_agents:OpenAISQLiteStore"
OPENAI_ADVANCED: Final = f"{_STORES}.openai_agents:OpenAIAdvancedStore"
ADK_SQLITE: Final = f"{_STORES}.google_adk:AdkSqliteStore"
ADK_DATABASE: Final = f"{_STORES}.google_adk:AdkDatabaseStore"
LANGGRAPH: Final = f"{_STORES}.langgraph:SqliteSaverStore"
LANGGRAPH_ASYNC: Final = f"{_STORES}.langgraph:AsyncSqliteSaverStore"
AGNO: Final = f"{_STORES}.agno:AgnoStore"

BY_HAND: Final = (SQLITE3, ORM)
PEERS: Final = (
    OPENAI,
    OPENAI_ADVANCED,
    ADK_SQLITE,
    ADK_DATABASE,
    LANGGRAPH,
    LANGGRAPH_ASYNC,
    AGNO,
)
ASYNC_PEERS: Final = (OPENAI, OPENAI_ADVANCED, ADK_SQLITE, ADK_DATABASE, LANGGRAPH_ASYNC)
ALL: Final = (
    OURS,
    OURS_HOSTED,
    OURS_ASYNC,
    BARE,
    BARE_AUTO,
    BARE_LOCKED,
    BARE_LOCKED_AUTO,
    *BY_HAND,
    *PEERS,
)


class Rival(msgspec.Struct, frozen=True):
    """The facts about a store before its worker runs.

    Attributes:
        where: its class, ``module:class``.
        name: its name in the tables.
        missing: its required distributions that are not installed.
    """

    where: str
    name: str
    missing: tuple[str, ...]

    @property
    def is_ours_or_bare(self) -> bool:
        """Whether it belongs to the smallest comparison that makes sense."""
        return self.where.startswith((f"{_STORES}.mandrake:", f"{_STORES}.bare:"))


@functools.cache
def rivals() -> dict[str, Rival]:
    """Return the facts about every store.

    Another process collects them: the modules import a second SQLite library.
    """
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.rivals"],
        cwd=Path(__file__).parent.parent,
        check=True,
        capture_output=True,
    )
    found = msgspec.json.decode(answer.stdout, type=list[Rival])
    return {each.where: each for each in found}


def look(where: str) -> Rival:
    """Return the facts about a store; its module does not import the required packages."""
    module, _, name = where.partition(":")
    store = getattr(importlib.import_module(module), name)
    return Rival(where, store.name, tuple(each for each in store.requires if not _has(each)))


def _has(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    print(msgspec.json.encode([look(each) for each in ALL]).decode())
