"""Reports the problems of a database file, with advice, without opening the file for use.

A diagnosis needs no pool, changes nothing and migrates nothing.
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
from mandrake_sessions.concurrency.fork import close_inherited
from mandrake_sessions.database.error_codes import free_bytes, translate
from mandrake_sessions.database.file_format import (
    APPLICATION_ID_AT,
    MAGIC,
    PAGES_AT,
    SMALLEST_PAGE,
    lock_page,
    page_size_of,
)
from mandrake_sessions.database.files import owner
from mandrake_sessions.database.files.atomic import BEFORE, BEFORE_BYTES, leftovers
from mandrake_sessions.database.files.kept import left_names, prefix_of
from mandrake_sessions.database.files.pages import Pages, open_pages
from mandrake_sessions.database.files.paths import (
    ASIDE,
    identify,
    may_write,
    odd_sidecar,
    real_path,
)
from mandrake_sessions.database.files.raw import states_of
from mandrake_sessions.database.files.turnstile import turnstile_path
from mandrake_sessions.database.health.place import advised, check_place
from mandrake_sessions.database.health.wording import LOW_DISK, counted, listed, readable_size
from mandrake_sessions.database.lock_holder import Users, find_users
from mandrake_sessions.database.sidecars import journal_of, shm_of, sidecar, wal_of
from mandrake_sessions.database.sqlite_library import is_safe_sqlite, second_sqlite
from mandrake_sessions.engine.health import HealthCheck, HealthLevel, HealthReport, HealthStatus
from mandrake_sessions.errors import DatabaseError
from mandrake_sessions.rescue.contents import Contents
from mandrake_sessions.tables import APPLICATION_ID

OK, DEGRADED, FAILED = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILED

_OPERATION: Final = "diagnose"
_RESTORE: Final = "mandrake-sessions restore BACKUP FILE --overwrite"
_RESCUE: Final = f"Restore a backup: {_RESTORE}; or rescue the readable rows: "


def diagnose(path: str | os.PathLike[str], *, full: bool = False) -> HealthReport:
    """Check a database file that a pool may not be able to open.

    Args:
        path: the file.
        full: whether SQLite makes its whole integrity check; otherwise it makes the quick one,
            which does not compare indexes with their tables.

    Returns:
        The report; each check that is not ok has advice.

    Raises:
        DatabasePathError: the path cannot name a file.
        DatabaseError: the system refuses access to the file, such as on a failing disk; each
            reason has its own subclass.
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
    """One check of one file."""

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
            # Only a regular file is opened: opening a named pipe may never return.
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
            # A process that the system does not show uses the file, or has opened it since. The
            # file was read as if unused, so the results may mix two states.
            inside = self._inside(in_use=True)
        return checks + inside

    def _inside(self, *, in_use: bool) -> list[HealthCheck]:
        odd = odd_sidecar(self._path, even_link=True)
        if odd is not None:
            # SQLite refuses the database for it, whatever the content.
            return [HealthCheck("reading", FAILED, f"{odd} is a link, or no file", "Remove it.")]
        checks = self._bytes(in_use=in_use)
        if checks[0].status is FAILED or (in_use and not self._size):
            # Opening an emptied file deletes its WAL.
            return checks
        contents = Contents(
            self._path,
            in_use=in_use,
            full=self._full,
            rescue=self._rescue(),
            salvage=self._salvage(),
        )
        return checks + contents.run()

    # -- the file and its sidecars ------------------------------------------------------------

    def _file(self) -> HealthCheck:
        wal = wal_of(self._path)
        try:
            identity = identify(self._path)
        except DatabaseError as error:
            return HealthCheck("file", FAILED, error.message, "Name the database file itself.")
        if identity is None:
            lost = f"; its WAL {wal.name} is still there" if os.path.exists(wal) else ""
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
                "folder", FAILED, "no file may be made next to the database", f"chmod u+wx {quoted}"
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
            return HealthCheck("disk", DEGRADED, "the file system does not answer", "Check it.")
        detail = f"{readable_size(free)} free"
        if free < LOW_DISK:
            return HealthCheck("disk", DEGRADED, detail, "Free space on this file system.")
        return HealthCheck("disk", OK, detail)

    def _journal(self) -> HealthCheck:
        journal = journal_of(self._path)
        is_file = journal.is_file() and not journal.is_symlink()
        if not is_file or self._users.pids:
            return HealthCheck("journal", OK)
        return HealthCheck(
            "journal",
            DEGRADED,
            "a program died while it wrote; SQLite undoes that at the next opening",
            f"Leave {journal.name} where it is, and open the database once.",
        )

    def _set_aside(self) -> HealthCheck:
        wal = wal_of(self._path)
        marks = (sidecar(wal, ASIDE, 36).name, prefix_of(self._path))
        left = {each.name for each in self._left_names}
        names = self._names(lambda name: name.startswith(marks) and name not in left)
        if not names:
            kept = [name for name in self._copies() if self._path.with_name(name).exists()]
            detail = f"kept from before a migration: {listed(kept)}" if kept else ""
            return HealthCheck("set_aside", OK, detail)
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
            "Delete them, or open the database once: that deletes them too.",
        )

    def _copies(self) -> list[str]:
        """Return the names of the copies that migrations make, with the unfinished ones."""
        before = sidecar(self._path, BEFORE, BEFORE_BYTES).name
        names = self._names(lambda name: name.startswith(before))
        return sorted({name.partition(".partial-")[0] for name in names})

    def _turnstile(self) -> HealthCheck:
        turnstile = turnstile_path(self._path)
        if turnstile.exists() and not (turnstile.is_file() and os.access(turnstile, os.W_OK)):
            return HealthCheck(
                "turnstile",
                DEGRADED,
                "it cannot be used: processes that write at once get no fair order",
                f"Remove {turnstile.name}; it is made again.",
            )
        return HealthCheck("turnstile", OK)

    def _locks(self) -> HealthCheck:
        users = self._users
        if not users.is_known:
            return HealthCheck("locks", OK, "this system does not show which processes use it")
        who = ", ".join(str(pid) for pid in sorted(users.pids))
        if users.writer is not None:
            return HealthCheck(
                "locks",
                DEGRADED,
                f"{users.writer.deed}; open in {who}",
                users.writer.advice,
            )
        return HealthCheck("locks", OK, f"open in process {who}" if who else "no process uses it")

    def _names(self, is_meant: Callable[[str], bool]) -> list[str]:

        with contextlib.suppress(OSError), os.scandir(self._path.parent) as entries:
            return sorted(entry.name for entry in entries if is_meant(entry.name))
        return []

    # -- its bytes ----------------------------------------------------------------------------

    def _bytes(self, *, in_use: bool) -> list[HealthCheck]:
        try:
            # A process may write the WAL of a file in use while its frames are read. So only the
            # first page of such a file is read here; SQLite checks the rest.
            with open_pages(self._path, with_wal=not in_use) as pages:
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
            # SQLite would treat it as a new database, and delete the WAL.
            return HealthCheck(
                "header",
                FAILED,
                "the file was emptied; only its WAL is left",
                f"Before any program opens it: {self._salvage()}; or restore a backup: {_RESTORE}",
            )
        first = pages.read(1) or b""
        if first[:16] != MAGIC or (self._size < SMALLEST_PAGE and not pages.is_in_wal(1)):
            return HealthCheck(
                "header", FAILED, "it does not begin as a SQLite database does", self._rescue()
            )
        application = int.from_bytes(first[APPLICATION_ID_AT], "big")
        if application != APPLICATION_ID and int.from_bytes(first[PAGES_AT], "big") > 1:
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
            # SQLite does not notice it while the WAL has the first page.
            return HealthCheck(
                "header",
                FAILED,
                f"it states pages of {page_size_of(pages.header)} bytes, not {pages.page_size}",
                self._rescue(),
            )
        return HealthCheck("header", OK)

    def _is_emptied(self) -> bool:
        """Return whether it is empty with a WAL; a new database gets its first page before."""
        with contextlib.suppress(FileNotFoundError):
            # The WAL first: a WAL that grows after this belongs to a file with a first page.
            has_wal = wal_of(self._path).stat().st_size > 0
            return has_wal and self._path.stat().st_size == 0
        return False

    def _length(self, pages: Pages) -> HealthCheck:
        first = pages.read(1)
        stated = 0 if first is None else int.from_bytes(first[PAGES_AT], "big")
        # An open file is checked against its own page count, which a first page in the WAL hides.
        stated = max(stated, int.from_bytes(pages.header[PAGES_AT], "big"))
        # Counted, not listed: a damaged header may state four thousand million pages.
        missing = pages.count_missing(stated)
        # SQLite never writes the lock page, so that one may be missing past the end of the file.
        never = lock_page(pages.page_size)
        if missing > (pages.whole_in_file < never <= stated):
            return HealthCheck(
                "size",
                FAILED,
                f"{self._size} bytes, but {stated} pages of {pages.page_size}: it was cut off",
                self._rescue(),
            )
        return HealthCheck("size", OK, readable_size(self._size))

    def _log(self, pages: Pages) -> HealthCheck:
        wal = wal_of(self._path)
        if not wal.exists():
            return HealthCheck("log", OK, "none")
        if pages.lost_frames:
            return HealthCheck(
                "log",
                DEGRADED,
                f"damaged frames of {wal.name}: {pages.lost_frames}; SQLite ignores these and "
                "all later ones",
                f"Before any program opens it: {self._salvage()}",
            )
        if pages.is_wal_damaged:
            return HealthCheck(
                "log",
                DEGRADED,
                f"the header of {wal.name} is damaged; SQLite treats the file as empty, and "
                "deletes it",
                f"Before any program opens it: {self._salvage()}",
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
        return shm_of(self._path).exists()
