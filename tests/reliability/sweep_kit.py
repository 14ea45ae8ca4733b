"""The fault sweep: one trial with one fault, and what must hold after it."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import apsw
from kits.descriptors import descriptors
from kits.waiting import PATIENCE

from mandrake_sessions import (
    CommitOutcomeUnknownError,
    ConnectionPool,
    CorruptDatabaseError,
    DatabaseMovedError,
    DatabaseOptions,
    MandrakeSessionsError,
    NewTurn,
    PoolOptions,
    SessionManager,
)
from mandrake_sessions.database.migrations import revisions
from mandrake_sessions.schema import HEAD
from mandrake_sessions.testing import Fault, FaultVFS, PowerLossVFS

CODES = {
    "read": (apsw.SQLITE_CORRUPT,),
    "write": (apsw.SQLITE_FULL,),
    "sync": (),
    "truncate": (),
    "open": (),
    "size": (),
    "lock": (),
    "delete": (),
}
"""The operations that are swept, and the codes they fail with besides their own."""


OLD_TURNS = "SELECT count(*) FROM turns WHERE id IN ('turn-1', 'turn-2')"

REBUILD = '''
"""The revision after the newest."""
from alembic import op
revision = "next"
down_revision = "{head}"
rebuilds_tables = True

def upgrade():
    with op.batch_alter_table("sessions", recreate="always") as batch:
        batch.alter_column("title", new_column_name="headline")
'''


class Trial:
    """A copy of a database, opened through a file system that may fail.

    Args:
        folder: an empty one.
        start: the folder whose files are copied into it.
        options: of the database, besides the name of the file system.
    """

    def __init__(self, folder: Path, start: Path, **options: Any) -> None:
        shutil.copytree(start, folder)
        self.folder = folder
        self.path = folder / "db.sqlite"
        # Under the failing one, so that each trial also ends in the death of the process and in
        # the cut of the power.
        self.power = PowerLossVFS()
        self.vfs = FaultVFS(base=self.power.name)
        # A small cache, so that there is something to read.
        self.options = DatabaseOptions(
            **{"vfs": self.vfs.name, "busy_timeout": 5.0, "cache_bytes": 1024, **options}
        )
        self.open()

    def open(self) -> None:
        """Make a new pool."""
        self.pool = ConnectionPool(PoolOptions(database=self.options, linger=0.0))
        self.sessions = SessionManager(self.path, pool=self.pool)

    def close(self) -> None:
        """Close what is open."""
        self.sessions.close()
        self.pool.close()


class Work:
    """The work that is swept: a public call that stores all of something, or nothing."""

    name = ""
    options: ClassVar[dict[str, Any]] = {}
    units: tuple[str, ...] = ("",)
    """The units that run at once, each in a thread of its own."""
    stride = 1
    """How many points the bounded form takes one of."""
    goes_on = False
    """Whether what has failed is tried further, and may so be stored later."""

    starts_with_talk = True
    """Whether the database is filled before, with what must never be lost."""
    served = "SELECT count(*) FROM sessions WHERE id = 'after'"
    """Whether the row that ``serve`` stored is there."""
    is_repeated = False
    """Whether ``serve`` does the same once more."""

    def prepare(self, trial: Trial) -> None:
        """Do what comes before the fault."""
        trial.sessions.init()

    def act(self, trial: Trial, unit: str) -> None:
        """Do what the fault strikes."""
        raise NotImplementedError

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        """Return whether it is stored, as a plain connection sees it; half of it is a failure."""
        raise NotImplementedError

    def serve(self, trial: Trial) -> None:
        """Use the pool once more, without a fault."""
        deadline = monotonic() + PATIENCE
        while True:
            try:
                # Where the opening failed, it is opened now.
                trial.sessions.init()
                trial.sessions.create_session(id="after")
                return
            except (DatabaseMovedError, CorruptDatabaseError):
                # The open file was given up, or is damaged for all that is known: once everybody
                # has closed it, the same pool opens it anew.
                assert monotonic() < deadline, "it stays closed"
                trial.sessions.close()


class Tally:
    """How many points there were, and how they ended.

    Attributes:
        points: how many, by what was swept and the operation.
        endings: how often each ending was seen, by what was swept.
    """

    def __init__(self) -> None:
        self.points: Counter[tuple[str, str]] = Counter()
        self.endings: Counter[tuple[str, str]] = Counter()

    def __str__(self) -> str:
        lines = [f"{sum(self.points.values())} injection points"]
        for name in dict.fromkeys(name for name, _ in self.points):
            points = {op: n for (work, op), n in self.points.items() if work == name}
            endings = {how: n for (work, how), n in self.endings.items() if work == name}
            lines.append(f"  {name}: {points}; {endings}")
        return "\n".join(lines)


def sweep(
    work: Work, folder: Path, start: Path, tally: Tally, step: int, *, briefly: bool = False
) -> None:
    """Let each operation of a work fail, one after the other, until none is left to fail.

    Args:
        work: the work that is swept.
        folder: for the trials.
        start: the folder every trial begins from.
        tally: counts the points.
        step: 1 takes every point; more takes the first and every ``step``-th.
        briefly: four ways to fail only, not every one.
    """
    numbers = itertools.count()
    for operation, code, written, sticking in _ways(briefly=briefly):
        for nth in itertools.count(1, step):
            fault = Fault(operation, nth, sticking=sticking, code=code, written=written)
            if not try_fault(work, fault, folder / str(next(numbers)), start, tally):
                break
            tally.points[work.name, operation] += 1


def _ways(*, briefly: bool) -> Iterator[tuple[str, int | None, float, bool]]:
    """Yield the ways to fail: the operation, its code, the part written all the same, for good."""
    if briefly:
        yield from (("read", None, 0.0, False), ("write", None, 0.5, True))
        yield from (("write", apsw.SQLITE_FULL, 0.0, False), ("sync", None, 0.0, False))
        return
    for operation, codes in CODES.items():
        for sticking in (False, True):
            for code in (None, *codes):
                yield operation, code, 0.0, sticking
            if operation == "write":
                yield operation, None, 0.5, sticking
                yield operation, None, 1.0, sticking


def try_fault(work: Work, fault: Fault, folder: Path, start: Path, tally: Tally) -> bool:
    """Make one trial and look at what it left; return whether the fault struck."""
    before = descriptors()
    trial = Trial(folder, start, **work.options)
    place = f"{work.name}: {fault}"
    try:
        work.prepare(trial)
        with trial.vfs.injecting(fault) as injection:
            errors = dict(zip(work.units, act_at_once(work, trial), strict=True))
        for error in errors.values():
            require_typed(error, place)
            tally.endings[work.name, "stored" if error is None else type(error).__name__] += 1
        assert injection.struck or set(errors.values()) == {None}, f"{place}: {errors}"
        look(work, trial, errors, place)
        for number, cut in enumerate((trial.power.death(), trial.power.cut(seed=fault.nth))):
            image = folder.with_name(f"{folder.name}-{number}")
            cut.write(image)
            look(work, trial, errors, f"image {number}: {place}", image)
            shutil.rmtree(image)
        work.serve(trial)
    finally:
        trial.close()
        trial.vfs.unregister()
        trial.power.unregister()
    look(work, trial, {"": None} if work.is_repeated else errors, place)
    with plain(trial.path) as raw:
        assert raw.execute(work.served).get == 1, f"what came after it is lost: {place}"
    left = set(descriptors()) - set(before)
    if fault.code == apsw.SQLITE_CORRUPT:
        # A process that cannot read whether its turns still stream keeps its claim.
        left = {each for each in left if "-owner-" not in each}
    assert not left, f"{place}: {left}"
    shutil.rmtree(folder)
    return injection.struck > 0


def act_at_once(work: Work, trial: Trial) -> list[Exception | None]:
    """Do all units of a work; return what each raised."""
    errors: dict[str, Exception | None] = {}

    def act(unit: str) -> None:
        try:
            work.act(trial, unit)
            errors[unit] = None
        except Exception as error:  # noqa: BLE001  # which ones are allowed is the question
            errors[unit] = error

    threads = [threading.Thread(target=act, args=(unit,)) for unit in work.units[1:]]
    for thread in threads:
        thread.start()
    act(work.units[0])
    for thread in threads:
        thread.join(PATIENCE)
    return [errors[unit] for unit in work.units]


def require_typed(error: BaseException | None, place: str) -> None:
    """Fail if an error is none of the library's."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            require_typed(each, place)
    elif error is not None and not isinstance(error, MandrakeSessionsError):
        raise AssertionError(place) from error


def look(
    work: Work,
    trial: Trial,
    errors: dict[str, Exception | None],
    place: str,
    image: Path | None = None,
) -> None:
    """Look at the file, or at an image of it, with a plain connection."""
    path = trial.path if image is None else image / trial.path.name
    stored = dict.fromkeys(work.units, False)
    # A new file whose name was not on the disk yet is gone with the power.
    if path.exists():
        with plain(path) as raw:
            require_whole(raw, place)
            if work.starts_with_talk:
                assert raw.execute(OLD_TURNS).get == 2, f"an old turn is lost: {place}"
            stored = {unit: work.is_stored(trial, raw, unit) for unit in work.units}
    for unit, error in errors.items():
        if error is None:
            assert stored[unit], f"acknowledged, and lost: {place}"
        elif not work.goes_on and not isinstance(error, CommitOutcomeUnknownError):
            assert not stored[unit], f"reported failed, and stored: {place}: {error!r}"


@contextlib.contextmanager
def plain(path: Path) -> Iterator[apsw.Connection]:
    """Open a file without the library."""
    with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as raw:
        raw.set_busy_timeout(5000)
        yield raw


def require_whole(raw: apsw.Connection, place: str = "") -> None:
    """Fail if SQLite finds anything wrong with a file."""
    assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)], place
    assert raw.execute("PRAGMA foreign_key_check").fetchall() == [], place


def talk(sessions: SessionManager) -> None:
    """Store a session with three rounds, for a start."""
    sessions.create_session("A talk", id="talk")
    for number in range(3):
        turns = [NewTurn(id=f"turn-{number}", content="answer " * 200)]
        sessions.record_round("talk", "question " * 100, turns, id=f"round-{number}")


def start_with(folder: Path, fill: Callable[[SessionManager], None]) -> Path:
    """Make a folder with a database that is closed."""
    with ConnectionPool() as pool, SessionManager(folder / "db.sqlite", pool=pool) as sessions:
        fill(sessions)
    return folder


def start_older(folder: Path) -> Path:
    """Make a folder with a database, and the scripts of a version that is newer than it."""
    start_with(folder, talk)
    ours = revisions.script_location()
    versions = folder / "scripts" / "versions"
    versions.mkdir(parents=True)
    for each in [ours / "env.py", *(ours / "versions").glob("*.py")]:
        target = folder / "scripts" / each.relative_to(ours)
        target.write_text(each.read_text("utf-8"), "utf-8")
    (versions / "next.py").write_text(REBUILD.format(head=HEAD), "utf-8")
    return folder
