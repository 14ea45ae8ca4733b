"""Runs Alembic with the library's scripts: checks the steps first, one thread at a time.

``migrate`` makes the transaction; ``migrations/env.py`` uses this module too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Protocol

import sqlalchemy

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.fork import after_fork
from mandrake_sessions.concurrency.mutex import Mutex
from mandrake_sessions.database.connection.backup import backup
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.dialect import lent_connection
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.atomic import BEFORE, BEFORE_BYTES, tidy
from mandrake_sessions.database.migrations.ddl import REVISIONS
from mandrake_sessions.database.migrations.installing import marks
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.database.sidecars import sidecar
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import DatabaseBusyError, MigrationError, SchemaTooNewError
from mandrake_sessions.late_imports import late_import
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.schema import metadata

if TYPE_CHECKING:
    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext, MigrationInfo, StampStep

Direction = Literal["upgrade", "downgrade"]
_Steps = Callable[[tuple[str, ...], "MigrationContext"], Iterable["StampStep"]]

_OPERATION = "migrate"
_PACKAGE = Path(__file__).parents[2]
_PACKAGED_SCRIPTS = _PACKAGE / "migrations"
_CHECKOUT_SCRIPTS = _PACKAGE.parent / "migrations"
# No other process writes during a backup before a migration, so it ends long before this.
_BACKUP_SECONDS = 3600.0
# In the ``info`` of the SQLAlchemy connection.
RUN = "mandrake_sessions.migration"


class _Environment(Protocol):
    """An EnvironmentContext, or the module ``alembic.context``, which stands for one."""

    def configure(self, *, connection: sqlalchemy.Connection | None = None, **kw: Any) -> None: ...

    def get_context(self) -> MigrationContext: ...

    def static_output(self, text: str) -> None: ...

    def begin_transaction(self) -> contextlib.AbstractContextManager[Any, Any]: ...

    def run_migrations(self, **kw: Any) -> None: ...


class _Alembic:
    """The lock for Alembic: pools open files in parallel, but a process has one ``alembic.op``."""

    def __init__(self) -> None:
        self.mutex = Mutex()

    def in_child(self) -> None:
        # A thread that only the parent has may have held it.
        self.mutex = Mutex()


_alembic = _Alembic()
after_fork(_alembic.in_child)


class Run:
    """The progress of one migration, for the clean-up after it.

    Attributes:
        steps: how many scripts it runs.
        backup: the copy that was made before the first one.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.backup: Path | None = None


def make_environment(
    direction: Direction, revision: str, scripts: Path | None, **context: Any
) -> EnvironmentContext:
    """Return Alembic's environment for a migration to a revision, without Alembic's globals."""
    with late_import:
        from alembic.config import Config
        from alembic.runtime.environment import EnvironmentContext
        from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(scripts or _complete_scripts()))
    find = script._upgrade_revs if direction == "upgrade" else script._downgrade_revs

    def steps(heads: tuple[str, ...], _: MigrationContext) -> Iterable[StampStep]:
        return find(revision, heads)  # type: ignore[arg-type,return-value]  # as Alembic does

    return EnvironmentContext(Config(), script, fn=steps, destination_rev=revision, **context)


def script_location() -> Path:
    """Return the folder of the migration scripts: in the package of a wheel, else next to it."""
    # Not Path.is_dir, which raises if the process may no longer search the folder.
    return _PACKAGED_SCRIPTS if os.path.isdir(_PACKAGED_SCRIPTS) else _CHECKOUT_SCRIPTS


def _complete_scripts() -> Path:
    """Return the folder of the migration scripts, which has one for each revision of this version.

    Raises:
        MigrationError: this installation lacks scripts.
    """
    folder = script_location()
    found = set(scripts_in_order()) if os.path.isdir(folder / "versions") else set()
    missing = [revision for revision in REVISIONS if revision not in found]
    if missing:
        raise MigrationError(
            f"This installation has no migration script for {', '.join(missing)} in {folder}. New "
            "databases need none, those of earlier versions do: a packed program must carry the "
            "folder mandrake_sessions/migrations with its .py files.",
            operation=_OPERATION,
        )
    return folder


def scripts_in_order() -> list[str]:
    """Return the revisions of the migration scripts, the oldest one first."""
    with late_import:
        from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(script_location()))
    return [script.revision for script in scripts.walk_revisions()][::-1]


def options() -> dict[str, Any]:
    """Return the configuration of every migration context."""
    return {
        "target_metadata": metadata,
        "render_as_batch": True,
        # SQLite supports it, and the library's dialect begins the transaction itself.
        "transactional_ddl": True,
        "on_version_apply": _mark_new_file,
    }


def write_sql(environment: _Environment, **configuration: Any) -> None:
    """Write the steps of an environment as SQL, instead of running them."""
    environment.configure(
        dialect_name="mandrake",
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        **options(),
        **configuration,
    )
    # Before the transaction, in which the pragma has no effect.
    environment.static_output("PRAGMA foreign_keys=OFF;")
    with _alembic_lock(FileBudget(DatabaseOptions().busy_timeout)), environment.begin_transaction():
        environment.run_migrations()


def run_migrations(
    environment: _Environment, borrowed: sqlalchemy.Connection, budget: Budget | None = None
) -> None:
    """Run the steps of an environment in the transaction of a lent connection.

    Args:
        environment: has the steps.
        borrowed: the connection that ``migrating`` has lent.
        budget: limits the wait for migrations of other threads; None for a database's default.

    Raises:
        DatabaseOpenError: the connection is not one that this library lends.
        DatabaseBusyError: other threads took longer.
        SchemaTooNewError: the database is at a revision that the scripts do not know.
        MigrationError: a table would be rebuilt with foreign keys on.
    """
    lent_connection(borrowed)
    environment.configure(connection=borrowed, **options())
    # The steps of every environment, also of a host's, are checked before the first one runs.
    steps = environment.get_context().opts["fn"]
    environment.configure(connection=borrowed, fn=_checked(steps), **options())
    budget = budget or FileBudget(DatabaseOptions().busy_timeout)
    with _alembic_lock(budget), environment.begin_transaction():
        environment.run_migrations()


@block
def _alembic_lock(budget: Budget) -> Iterator[None]:
    """Wait until no other thread uses Alembic.

    Taken inside the transaction, so that a thread that waits for another process delays no other.
    """
    with _alembic.mutex.held(budget.left()) as is_held:
        if not is_held:
            raise DatabaseBusyError(
                phase="queue", waited=monotonic() - budget.started, operation=_OPERATION
            )
        yield


def _checked(steps: _Steps) -> _Steps:
    def checked(heads: tuple[str, ...], context: MigrationContext) -> Iterable[StampStep]:
        assert context.connection is not None
        assert context.script is not None
        connection = lent_connection(context.connection)
        known = {script.revision for script in context.script.walk_revisions()}
        if not known.issuperset(heads):
            raise SchemaTooNewError(path=connection.path, operation=_OPERATION)
        planned = list(steps(heads, context))
        run = context.connection.info.get(RUN, Run())
        run.steps = len(planned)
        if heads and any(_rebuilds_tables(step) for step in planned):
            if connection.value("PRAGMA foreign_keys"):
                raise MigrationError(
                    "Foreign keys are on, and rebuilding a table would delete the rows that refer "
                    "to it; take the connection from migrate.migrating().",
                    path=connection.path,
                    operation=_OPERATION,
                )
            run.backup = _back_up(connection, heads[0])
        return planned

    return checked


def _rebuilds_tables(step: StampStep) -> bool:
    # A stamp has no script.
    script = getattr(step, "revision", None)
    return bool(script is not None and getattr(script.module, "rebuilds_tables", False))


def _back_up(connection: Connection, revision: str) -> Path:
    """Copy the database in its state at BEGIN: no other process can write, and no step has run.

    Before BEGIN, another process could migrate between reading the revision and the copy. The copy
    uses a connection of its own, because SQLite does not copy from one that is writing. An existing
    copy was made before a migration that was stored, and is kept.
    """
    named = sidecar(connection.path, BEFORE, BEFORE_BYTES)
    target = Path(f"{named}{revision}")
    number = 1
    while target.exists():
        # A process that was killed just after it named this copy has left the other name too.
        tidy(target)
        number += 1
        target = Path(f"{named}{revision}-{number}")
    budget = FileBudget(_BACKUP_SECONDS)
    source = open_connection(
        connection.path,
        connection.identity,
        DatabaseOptions(vfs=connection.raw.open_vfs or None),
        budget,
        auxiliary=True,
    )
    try:
        return backup(source, target, budget)
    finally:
        source.close()


def _mark_new_file(ctx: MigrationContext, step: MigrationInfo, **_: object) -> None:
    """Write the marks of a new file, in the transaction that creates its tables."""
    if step.is_stamp or not step.is_upgrade or step.source_revision_ids:
        return
    kept, path = 0, None
    if not ctx.as_sql and ctx.connection is not None:
        path = lent_connection(ctx.connection).path
        kept = int(ctx.connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    pragmas, facts = marks(path, kept)
    for name, number in pragmas.items():
        ctx.execute(f"PRAGMA {name} = {number}")
    meta = sqlalchemy.table(
        "meta",
        sqlalchemy.column("key", sqlalchemy.Text),
        sqlalchemy.column("value", sqlalchemy.Text),
    )
    for key, value in facts.items():
        ctx.execute(sqlalchemy.insert(meta).values(key=key, value=value))
