"""The claims of processes on a database, which show whether the owner of a turn still lives.

A process claims a database with a small file next to it, and holds a lock on that file. The kernel
releases the lock when the process dies in any way, and every pid namespace sees it. A process that
may open the database may open the claim. Where files cannot be locked so, the owner touches its
file periodically.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mandrake_sessions.concurrency.fork import after_fork, current_pid
from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.database.error_codes import pass_on_timeout, translate_os
from mandrake_sessions.database.files import owner_signs
from mandrake_sessions.database.files.flock import try_lock
from mandrake_sessions.database.sidecars import sidecar_name
from mandrake_sessions.errors import DatabaseFolderError
from mandrake_sessions.ids import new_id

_ATTEMPTS: Final = 20
_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


_ID_LENGTH: Final = 36


class Owner:
    """This process's claim on one database.

    Attributes:
        id: stored in the turns that the process streams.
        path: the file of the claim.
        uses: how many open files use the claim.
    """

    def __init__(self, id: str, database: Path) -> None:
        self.id = id
        self.path: Path = _file_of(database, id)
        self.uses: int = 1
        self.descriptor: int | None = None
        self._database = database
        self._pid = current_pid()

    @property
    def is_locked(self) -> bool:
        """Whether a lock shows that the owner lives; otherwise its heartbeat does."""
        return self.descriptor is not None

    @property
    def is_in_place(self) -> bool:
        """Whether its file still exists: a folder may have been deleted and made again."""
        try:
            found = os.lstat(self.path)
            if self.descriptor is None:
                return True
            return os.path.samestat(found, os.fstat(self.descriptor))
        except OSError as error:
            pass_on_timeout(error)
            return False

    def release(self, *, keep: bool = False) -> None:
        """Count one use less; the last release ends the claim.

        Args:
            keep: whether turns of this process are still streaming in the database; if so, the
                claim stays until the process ends, or until a later use releases it.
        """
        with _claims.mutex:
            self.uses -= 1
            if not self.uses and not keep:
                _claims.drop(self._database, self)

    def end(self) -> None:
        """Remove the file, and release its lock; a forked child leaves both to its parent."""
        if self._pid != current_pid():
            return
        # The file goes first, so that no process finds it unlocked. Windows removes no open file,
        # but has no lock either.
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            # Cleared before the close: after a signal the descriptor must not be closed twice.
            descriptor, self.descriptor = self.descriptor, None
            if descriptor is not None:
                os.close(descriptor)


class _Claims:
    """The claims of this process, by the real path of the database.

    The mutex is re-entrant and held across a fork: a signal handler may fork during a claim, and no
    child may inherit a locked file that it does not know.
    """

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.owners: dict[Path, Owner] = {}
        self.stop_beating: Gate | None = None

    def drop(self, database: Path, owner: Owner) -> None:
        """End a claim."""
        if self.owners.get(database) is owner:
            del self.owners[database]
        owner.end()
        if self.stop_beating is not None and all(each.is_locked for each in self.owners.values()):
            self.stop_beating.set()
            self.stop_beating = None

    def start_beating(self) -> None:
        """Let a thread touch the files of owners without a lock, as long as there are any."""
        if self.stop_beating is None:
            stop = Gate()
            start(
                threading.Thread(
                    target=_beat, args=(self, stop), name="mandrake-heartbeat", daemon=True
                )
            )
            self.stop_beating = stop


_claims = _Claims()


def claim(database: Path) -> Owner:
    """Claim a database for this process, or count one use more of its claim.

    Args:
        database: its real path.

    Raises:
        DatabaseError: the owner's file cannot be made; each reason has its own subclass.
        ThreadStartError: it cannot be locked, and the thread that touches it cannot be started.
    """
    counted: Owner | None = None
    try:
        with _claims.mutex:
            counted = _counted(database)
    except BaseException:
        # A signal after the release of the mutex: no caller would ever release the use.
        if counted is not None:
            counted.release()
        raise
    return counted


def _counted(database: Path) -> Owner:
    owner = _claims.owners.get(database)
    if owner is not None:
        if owner.is_in_place:
            owner.uses += 1
            return owner
        _claims.drop(database, owner)
    try:
        owner = _make(database)
    except OSError as error:
        raise translate_os(error, database) from error
    try:
        _claims.owners[database] = owner
        if not owner.is_locked:
            _claims.start_beating()
    except BaseException:
        _claims.drop(database, owner)
        raise
    return owner


def is_alive(database: Path, owner: str) -> bool:
    """Return whether the process with an owner's id still lives.

    If its file cannot be locked, the owner counts as alive until three ``HEARTBEAT_INTERVAL``
    without a heartbeat have passed, so a caller has to ask again later. If its file cannot be
    opened, the system's table of locks decides (Linux), or else the heartbeat.

    Args:
        database: the real path of the database.
        owner: the id in a turn. A text that is not the id of an owner has no living process.
    """
    if _ID.fullmatch(owner) is None:
        return False
    with _claims.mutex:
        own = _claims.owners.get(database)
        if own is not None and own.id == owner:
            return True
    with owner_signs.examined(_file_of(database, owner)) as is_living:
        return is_living


def owners_of(database: Path) -> dict[str, bool]:
    """Return the ids of all owners that have a file, each with whether the owner lives."""
    return {id: is_alive(database, id) for id in sorted(_ids_of(database))}


def forget(database: Path, owner: str) -> None:
    """Remove the file of an owner if the owner is dead; a failure leaves the file."""
    if _ID.fullmatch(owner) is None:
        return
    with _claims.mutex:
        own = _claims.owners.get(database)
        if own is not None and own.id == owner:
            return
    path = _file_of(database, owner)
    # Removed while the lock of the check is held: a process that is just making its claim either
    # cannot lock the file or sees that it was removed.
    with owner_signs.examined(path) as is_living, contextlib.suppress(OSError):
        if not is_living:
            path.unlink(missing_ok=True)
            owner_signs.forget(path)


def forget_dead(database: Path) -> None:
    """Remove the files of all dead owners: a killed process leaves its own."""
    for id in _ids_of(database):
        forget(database, id)


def forget_all(database: Path) -> None:
    """Remove the files of all owners of a database that is being removed.

    No process has it open. A living process can only have kept a claim for turns that are removed
    too.
    """
    drop_own(database)
    for id in _ids_of(database):
        with contextlib.suppress(OSError):
            _file_of(database, id).unlink(missing_ok=True)


def drop_own(database: Path) -> None:
    """End this process's own claim on a database that is being removed."""
    with _claims.mutex:
        own = _claims.owners.get(database)
        if own is not None:
            _claims.drop(database, own)


def prefix_of(database: Path) -> str:
    """Return the first part of the names of a database's owners' files."""
    return sidecar_name(database, "-owner-", _ID_LENGTH)


def ids_among(names: Iterable[str], database: Path) -> list[str]:
    """Return the ids of the owners of a database that have a file among ``names``."""
    prefix = prefix_of(database)
    found = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return [id for id in found if _ID.fullmatch(id)]


def _ids_of(database: Path) -> list[str]:
    try:
        return ids_among(os.listdir(database.parent), database)
    except OSError:
        return []


def _file_of(database: Path, owner: str) -> Path:
    return database.with_name(f"{prefix_of(database)}{owner}")


def _make(database: Path) -> Owner:
    """Make an owner's file and lock it, before its id is known to any other process."""
    for _ in range(_ATTEMPTS):
        owner = Owner(new_id(), database)
        try:
            if _has_file(owner, database):
                return owner
        except FileExistsError:
            # The file is another owner's and must not be removed.
            raise
        except BaseException:
            owner.end()
            raise
        owner.end()
    raise DatabaseFolderError(
        "The file of an owner was removed each time it was made.", path=database, operation="claim"
    )


def _has_file(owner: Owner, database: Path) -> bool:
    """Make the file of an owner; return whether it still existed when it was locked."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    descriptor = owner.descriptor = os.open(owner.path, flags, 0o600)
    _let_others_open(database, descriptor)
    is_locked = _lock(descriptor)
    if is_locked is False:
        os.write(descriptor, owner_signs.HEARTBEAT)
    # A process that removes dead owners' files may have found it before it was locked.
    is_in_place = is_locked is not None and os.fstat(descriptor).st_nlink > 0
    if is_locked is False:
        # Cleared before the close: after a signal the descriptor must not be closed twice.
        owner.descriptor = None
        os.close(descriptor)
    return is_in_place


def _let_others_open(database: Path, descriptor: int) -> None:
    """Let other users open an owner's file, unless only this one may open the database.

    The file has no content, and a process that cannot try its lock cannot see that the owner died.
    """
    if sys.platform == "win32":
        return
    # A file system without modes keeps no other user out.
    with contextlib.suppress(OSError):
        found = os.stat(database)
        if found.st_mode & 0o077 or found.st_uid != os.geteuid():
            # Not by the mode of os.open, which a umask restricts.
            os.fchmod(descriptor, 0o644)


def _lock(descriptor: int) -> bool | None:
    """Return True with the lock, None while another process checks it, False without locks."""
    try:
        return try_lock(descriptor) or None
    except OSError as error:
        pass_on_timeout(error)
        return False


def _beat(claims: _Claims, stop: Gate) -> None:
    while not stop.wait(owner_signs.HEARTBEAT_INTERVAL):
        with claims.mutex:
            silent = [owner.path for owner in claims.owners.values() if not owner.is_locked]
        for path in silent:
            with contextlib.suppress(OSError):
                os.utime(path)


def _in_child() -> None:
    """Close the files of the parent's claims in a child, which would keep their locks otherwise.

    The parent's own descriptor keeps the lock, so closing releases nothing; unlocking would.
    """
    global _claims  # noqa: PLW0603  # the child's copy of the mutex is never released
    for owner in _claims.owners.values():
        if owner.descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(owner.descriptor)
            owner.descriptor = None
    _claims = _Claims()


def _before_fork() -> None:
    _claims.mutex.acquire()


def _in_parent() -> None:
    _claims.mutex.release()


def _at_exit() -> None:
    with _claims.mutex:
        for database, owner in list(_claims.owners.items()):
            _claims.drop(database, owner)


after_fork(_in_child)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent)
atexit.register(_at_exit)
