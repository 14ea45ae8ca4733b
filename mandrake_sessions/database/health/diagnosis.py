"""Tells a person what is wrong with a database file and what to do, without opening it for use.

No pool is needed, nothing is changed and nothing migrated.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions import arguments
from mandrake_sessions.database import owner
from mandrake_sessions.database.faults import free_bytes, translate
from mandrake_sessions.database.guard import close_inherited, is_safe_sqlite, second_sqlite
from mandrake_sessions.database.header import MAGIC, SMALLEST_PAGE, page_size_of
from mandrake_sessions.database.health.contents import Contents
from mandrake_sessions.database.health.holder import Users, find_users
from mandrake_sessions.database.health.place import advised, check_place
from mandrake_sessions.database.health.report import (
    HealthCheck,
    HealthLevel,
    HealthReport,
    HealthStatus,
)
from mandrake_sessions.database.health.wording import LOW_DISK, counted, listed, readable_size
from mandrake_sessions.database.kept import left_names, prefix_of
from mandrake_sessions.database.paths import ASIDE, companions, identify, may_write, real_path
from mandrake_sessions.database.placing import BEFORE, BEFORE_BYTES, leftovers
from mandrake_sessions.database.raw import states_of
from mandrake_sessions.database.salvage.pages import Pages, open_pages
from mandrake_sessions.database.sidecars import beside
from mandrake_sessions.database.turnstile import turnstile_path
from mandrake_sessions.errors import DatabaseError
from mandrake_sessions.tables import APPLICATION_ID

OK, DEGRADED, FAILED = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILED

_OPERATION: Final = "diagnose"
_LOCKS_AT: Final = 0x40000000
_RESTORE: Final = "mandrake-sessions restore BACKUP FILE --overwrite"
_RESCUE: Final = f"Restore a backup: {_RESTORE}; or rescue what can be read: "


def diagnose(path: str | os.PathLike[str], *, full: bool = False) -> HealthReport:
    """Look at a database file that a pool may not be able to open.

    Args:
        path: the file.
        full: whether SQLite's whole integrity check is made; otherwise its quick one, which does
            not compare indexes with their tables.

    Returns:
        What was found; each check that is not ok says what can be done.

    Raises:
        DatabasePathError: the path cannot name a file.
        DatabaseError: the system does not let it be looked at, as its disk fails; each reason has
            its own subclass.
        InvalidArgumentError: an argument has the wrong type.
    """
    arguments.flag("full", full)
    real = real_path(path)
    close_inherited()
    level = HealthLevel.FULL if full else HealthLevel.THOROUGH
    try:
        checks = advised(_Diagnosis(real, full=full).run(), real)
    except (OSError, apsw.Error) as error:
        raise translate(error, real, "diagnose") from error
    return HealthReport(real, tuple(checks), level)


class _Diagnosis:
    """One look at one file."""

    def __init__(self, path: Path, *, full: bool) -> None:
        self._path = path
        self._quoted = shlex.quote(str(path))
        self._full = full
        self._size = 0
        self._users = Users(frozenset(), None, False)
        self._left_names: list[Path] = []

    def run(self) -> list[HealthCheck]:
        checks = [self._file()]
        if not self._path.is_file():
            # Opening what is no file may wait for ever: a named pipe has no other end.
            around = [self._folder(), self._set_aside(), self._partials()]
            return [*checks, *around, self._disk(), self._sqlite()]
        self._size = self._path.stat().st_size
        self._users = find_users(self._path)
        self._left_names = left_names(self._path, remove=False)
        checks += [
            self._folder(),
            self._sqlite(),
            self._disk(),
            self._journal(),
            self._set_aside(),
            self._owners(),
            self._partials(),
            self._turnstile(),
            self._locks(),
            *check_place(self._path),
        ]
        in_use = self._is_in_use()
        before = states_of(self._path)
        inside = self._inside(in_use=in_use)
        if not in_use and states_of(self._path) != before:
            # Somebody whom the system does not show uses it, or has come meanwhile: what was read
            # as if nobody did may be a mixture.
            inside = self._inside(in_use=True)
        return checks + inside

    def _inside(self, *, in_use: bool) -> list[HealthCheck]:
        checks = self._bytes(in_use=in_use)
        if checks[0].status is FAILED or (in_use and not self._size):
            # To open a file that was emptied deletes its log.
            return checks
        contents = Contents(
            self._path,
            in_use=in_use,
            full=self._full,
            rescue=self._rescue(),
            salvage=self._salvage(),
        )
        return checks + contents.run()

    # -- the file and what stands beside it ---------------------------------------------------

    def _file(self) -> HealthCheck:
        log = Path(f"{self._path}-wal")
        try:
            identity = identify(self._path)
        except DatabaseError as error:
            return HealthCheck("file", FAILED, error.message, "Name the database file itself.")
        if identity is None:
            lost = f"; its log {log.name} is still there" if os.path.exists(log) else ""
            return HealthCheck(
                "file",
                FAILED,
                f"there is no file{lost}",
                f"Check the path, or restore a backup: {_RESTORE.removesuffix(' --overwrite')}",
            )
        found = self._path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if not os.access(self._path, os.R_OK):
            return HealthCheck(
                "file", FAILED, f"may not be read (mode {mode:o})", f"chmod u+rw {self._quoted}"
            )
        if not may_write(self._path):
            return HealthCheck(
                "file", FAILED, f"may not be written (mode {mode:o})", f"chmod u+w {self._quoted}"
            )
        if mode & 0o077:
            return HealthCheck(
                "file", DEGRADED, f"others may use it (mode {mode:o})", f"chmod 600 {self._quoted}"
            )
        return HealthCheck("file", OK, f"{readable_size(found.st_size)}, mode {mode:o}")

    def _folder(self) -> HealthCheck:
        folder = self._path.parent
        quoted = shlex.quote(str(folder))
        if not folder.is_dir():
            return HealthCheck("folder", FAILED, "it is not there", f"mkdir -m 700 {quoted}")
        if not os.access(folder, os.W_OK | os.X_OK):
            return HealthCheck(
                "folder", FAILED, "no file may be made beside the database", f"chmod u+wx {quoted}"
            )
        return HealthCheck("folder", OK)

    def _sqlite(self) -> HealthCheck:
        version = apsw.sqlite_lib_version()
        if not is_safe_sqlite(version):
            return HealthCheck(
                "sqlite", FAILED, f"{version} can lose data", "pip install --upgrade apsw"
            )
        second = second_sqlite()
        if second is not None:
            return HealthCheck(
                "sqlite",
                DEGRADED,
                f"a second SQLite library is loaded: {second}",
                "Let it open none of these files.",
            )
        return HealthCheck("sqlite", OK, version)

    def _disk(self) -> HealthCheck:
        free = free_bytes(self._path)
        if free is None:
            return HealthCheck("disk", DEGRADED, "the file system does not answer", "Look at it.")
        told = f"{readable_size(free)} free"
        if free < LOW_DISK:
            return HealthCheck("disk", DEGRADED, told, "Free space on this file system.")
        return HealthCheck("disk", OK, told)

    def _journal(self) -> HealthCheck:
        journal = beside(self._path, "-journal")
        if not journal.exists() or self._users.pids:
            return HealthCheck("journal", OK)
        return HealthCheck(
            "journal",
            DEGRADED,
            "a program died while it wrote; SQLite undoes that at the next opening",
            f"Leave {journal.name} where it is, and open the database once.",
        )

    def _set_aside(self) -> HealthCheck:
        log = companions(self._path)[0]
        marks = (beside(log, ASIDE, 36).name, prefix_of(self._path))
        left = {each.name for each in self._left_names}
        names = self._beside(lambda name: name.startswith(marks) and name not in left)
        if not names:
            kept = [name for name in self._copies() if self._path.with_name(name).exists()]
            told = f"kept from before a migration: {listed(kept)}" if kept else ""
            return HealthCheck("set_aside", OK, told)
        return HealthCheck(
            "set_aside",
            DEGRADED,
            f"kept from an earlier file: {listed(names)}",
            "Salvage a .damaged- file if something is missing; delete them when nothing is.",
        )

    def _owners(self) -> HealthCheck:
        living = owner.owners_of(self._path)
        alive = sum(living.values())
        dead = len(living) - alive
        detail = f"{alive} living, {dead} dead" if living else ""
        return HealthCheck("owners", OK, detail)

    def _partials(self) -> HealthCheck:
        left = leftovers(self._path)
        size = readable_size(sum(each.size for each in left))
        found = [f"{listed([each.path.name for each in left])}, {size}"] if left else []
        if self._left_names:
            names = listed([each.name for each in self._left_names])
            found.append(f"{names}, the database itself under a second name")
        if not found:
            return HealthCheck("partial_files", OK)
        return HealthCheck(
            "partial_files",
            DEGRADED,
            f"left by a process that was killed: {'; '.join(found)}",
            "Delete them, or open the database once: that does it too.",
        )

    def _copies(self) -> list[str]:
        """Return the names of the copies that migrations make, also of those not finished."""
        before = beside(self._path, BEFORE, BEFORE_BYTES).name
        names = self._beside(lambda name: name.startswith(before))
        return sorted({name.partition(".partial-")[0] for name in names})

    def _turnstile(self) -> HealthCheck:
        turnstile = turnstile_path(self._path)
        if turnstile.exists() and not (turnstile.is_file() and os.access(turnstile, os.W_OK)):
            return HealthCheck(
                "turnstile",
                DEGRADED,
                "it cannot be used: processes that write at once do not take turns",
                f"Remove {turnstile.name}; it is made again.",
            )
        return HealthCheck("turnstile", OK)

    def _locks(self) -> HealthCheck:
        users = self._users
        if not users.is_known:
            return HealthCheck("locks", OK, "this system does not tell who has it open")
        who = ", ".join(str(pid) for pid in sorted(users.pids))
        if users.writer is not None:
            return HealthCheck(
                "locks",
                DEGRADED,
                f"{users.writer.deed}; open in {who}",
                users.writer.advice,
            )
        return HealthCheck("locks", OK, f"open in process {who}" if who else "nobody has it open")

    def _beside(self, is_meant: Callable[[str], bool]) -> list[str]:
        with contextlib.suppress(OSError), os.scandir(self._path.parent) as entries:
            return sorted(entry.name for entry in entries if is_meant(entry.name))
        return []

    # -- its bytes ----------------------------------------------------------------------------

    def _bytes(self, *, in_use: bool) -> list[HealthCheck]:
        try:
            # A log that is being written is another one by the time its frames are read: of a
            # file in use its first page is looked at here, the rest by SQLite.
            with open_pages(self._path, with_log=not in_use) as pages:
                if in_use:
                    return [self._header(pages), HealthCheck("log", OK, "in use")]
                return [self._header(pages), self._length(pages), self._log(pages)]
        except apsw.Error as error:
            typed = translate(error, self._path, _OPERATION)
            return [HealthCheck("header", FAILED, typed.message, "Check the disk.")]

    def _header(self, pages: Pages) -> HealthCheck:
        if not self._size and not self._is_emptied():
            return HealthCheck(
                "header", DEGRADED, "the file is empty: no database yet", "Open it to make one."
            )
        if not self._size:
            # SQLite would take it for a new one, and delete the log.
            return HealthCheck(
                "header",
                FAILED,
                "the file was emptied; only its log is left",
                f"Before anybody opens it: {self._salvage()}; or restore a backup: {_RESTORE}",
            )
        first = pages.read(1) or b""
        if first[:16] != MAGIC or (self._size < SMALLEST_PAGE and not pages.is_in_log(1)):
            return HealthCheck(
                "header", FAILED, "it does not begin as a SQLite database does", self._rescue()
            )
        application = int.from_bytes(first[68:72], "big")
        if application != APPLICATION_ID and int.from_bytes(first[28:32], "big") > 1:
            return HealthCheck(
                "header",
                FAILED,
                f"it is marked as another program's database ({application:#010x})",
                self._rescue(),
            )
        if (
            pages.header[:16] == MAGIC
            and self._size
            and page_size_of(pages.header) != pages.page_size
        ):
            # SQLite does not see it while the log has the first page.
            return HealthCheck(
                "header",
                FAILED,
                f"it states pages of {page_size_of(pages.header)} bytes, not {pages.page_size}",
                self._rescue(),
            )
        return HealthCheck("header", OK)

    def _is_emptied(self) -> bool:
        """Whether it has a log and nothing else; a new database gets its first page first."""
        with contextlib.suppress(FileNotFoundError):
            # The log first: what comes into it later is of a file that has its first page.
            has_log = Path(f"{self._path}-wal").stat().st_size > 0
            return has_log and self._path.stat().st_size == 0
        return False

    def _length(self, pages: Pages) -> HealthCheck:
        first = pages.read(1)
        stated = 0 if first is None else int.from_bytes(first[28:32], "big")
        # What an open file is judged by stands in the file, under a first page in the log.
        stated = max(stated, int.from_bytes(pages.header[28:32], "big"))
        # Counted, not listed: a damaged header may state four thousand million.
        missing = pages.count_missing(stated)
        # The page on which the locks lie is never written: the log has all others.
        never = _LOCKS_AT // pages.page_size + 1
        if missing > (pages.whole_in_file < never <= stated):
            return HealthCheck(
                "size",
                FAILED,
                f"{self._size} bytes, but {stated} pages of {pages.page_size}: it was cut off",
                self._rescue(),
            )
        return HealthCheck("size", OK, readable_size(self._size))

    def _log(self, pages: Pages) -> HealthCheck:
        log = Path(f"{self._path}-wal")
        if not log.exists():
            return HealthCheck("log", OK, "none")
        if pages.lost_frames:
            return HealthCheck(
                "log",
                DEGRADED,
                f"damaged frames of {log.name}: {pages.lost_frames}; SQLite leaves out those and "
                "all behind them",
                f"Before anybody opens it: {self._salvage()}",
            )
        if pages.is_log_damaged:
            return HealthCheck(
                "log",
                DEGRADED,
                f"the head of {log.name} is damaged; SQLite takes all of it for empty, and "
                "deletes it",
                f"Before anybody opens it: {self._salvage()}",
            )
        left = "left by a program that did not close it"
        return HealthCheck("log", OK, f"{counted(pages.frames, 'frame')}, {left}")

    def _rescue(self) -> str:
        return f"{_RESCUE}{self._salvage()}"

    def _salvage(self) -> str:
        return f"mandrake-sessions salvage {self._quoted} NEW"

    def _is_in_use(self) -> bool:
        if self._users.is_known:
            return bool(self._users.pids)
        return Path(f"{self._path}-shm").exists()
