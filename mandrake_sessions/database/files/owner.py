"""Which process owns a streaming turn, and whether that process still lives.

A process claims a database with a small file beside it, and holds a lock on that file: the kernel
frees it when the process dies, however it dies, and every pid namespace sees it. A process that may
open the database may look at the file. Where files cannot be locked so, the owner touches its file
again and again.
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
from mandrake_sessions.database.sidecars import name_beside
from mandrake_sessions.errors import DatabaseFolderError
from mandrake_sessions.ids import new_id

_ATTEMPTS: Final = 20
_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


_ID_LENGTH: Final = 36


class Owner:
    """This process's claim on one database.

    Attributes:
        id: what the turns it streams carry.
        path: its file.
        uses: how many open files count on it.
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
        """Whether a lock tells that it lives; otherwise its heartbeat does."""
        return self.descriptor is not None

    @property
    def is_in_place(self) -> bool:
        """Whether its file is still there: a folder may have been deleted and made again."""
        try:
            found = os.lstat(self.path)
            if self.descriptor is None:
                return True
            return os.path.samestat(found, os.fstat(self.descriptor))
        except OSError as error:
            pass_on_timeout(error)
            return False

    def release(self, *, keep: bool = False) -> None:
        """Count one use less; after the last one the claim is gone.

        Args:
            keep: whether turns of this process are still streaming in the database: then the
                claim stays until the process ends, or until a later use releases it.
        """
        with _claims.mutex:
            self.uses -= 1
            if not self.uses and not keep:
                _claims.drop(self._database, self)

    def end(self) -> None:
        """Remove the file, and free its lock; a forked child leaves both to its parent."""
        if self._pid != current_pid():
            return
        # In this order, so that nobody finds it unlocked; Windows wants the other, and has no lock.
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            # Taken first, and closed at once: no signal may have it closed twice, or never.
            descriptor, self.descriptor = self.descriptor, None
            if descriptor is not None:
                os.close(descriptor)


class _Claims:
    """The claims of this process, by the real path of the database.

    The mutex is re-entrant and held across a fork: a signal's handler may fork in the midst of a
    claim, and no child may inherit a locked file that it does not know of.
    """

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.owners: dict[Path, Owner] = {}
        self.stop_beating: Gate | None = None

    def drop(self, database: Path, owner: Owner) -> None:
        """Let go of a claim."""
        if self.owners.get(database) is owner:
            del self.owners[database]
        owner.end()
        if self.stop_beating is not None and all(each.is_locked for each in self.owners.values()):
            self.stop_beating.set()
            self.stop_beating = None

    def start_beating(self) -> None:
        """Have the owners without a lock touched for as long as there are any."""
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
    """Claim a database for this process, or count one use more of the claim there is.

    Args:
        database: its real path.

    Raises:
        DatabaseError: the owner's file cannot be made; each reason has its own subclass.
        ThreadStartError: it cannot be locked, and no thread can be started that touches it.
    """
    counted: Owner | None = None
    try:
        with _claims.mutex:
            counted = _counted(database)
    except BaseException:
        # A signal when the mutex has been let go of: it would be the claim of no caller.
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
    """Return whether the process that an owner's id stands for still lives.

    Where its file cannot be locked, it is alive until it was silent for ``HEARTBEAT_INTERVAL``
    three times: ask again later. Where its file cannot be opened, the system's table of locks
    decides (Linux), or else its silence.

    Args:
        database: the real path of the database.
        owner: what a turn carries. A text that is not the id of an owner is nobody's.
    """
    if _ID.fullmatch(owner) is None:
        return False
    with _claims.mutex:
        own = _claims.owners.get(database)
        if own is not None and own.id == owner:
            return True
    with owner_signs.looking_at(_file_of(database, owner)) as is_living:
        return is_living


def is_claimed(database: Path) -> bool:
    """Return whether any process that lives has claimed a database."""
    return any(is_alive(database, id) for id in _ids_beside(database))


def owners_of(database: Path) -> dict[str, bool]:
    """Return the ids of all owners of a database whose files are there, and which of them live."""
    return {id: is_alive(database, id) for id in sorted(_ids_beside(database))}


def forget(database: Path, owner: str) -> None:
    """Remove the file of an owner, if it is dead; what cannot be removed stays."""
    if _ID.fullmatch(owner) is None:
        return
    with _claims.mutex:
        own = _claims.owners.get(database)
        if own is not None and own.id == owner:
            return
    path = _file_of(database, owner)
    # Removed while it is locked for looking: who is just claiming with it sees one or the other.
    with owner_signs.looking_at(path) as is_living, contextlib.suppress(OSError):
        if not is_living:
            path.unlink(missing_ok=True)
            owner_signs.forget(path)


def forget_dead(database: Path) -> None:
    """Remove the files of all owners that are dead: a process that was killed leaves its own."""
    for id in _ids_beside(database):
        forget(database, id)


def forget_all(database: Path) -> None:
    """Remove the files of all owners of a database that is being removed.

    Nobody has it open: a living process can only have kept a claim for turns that go with it.
    """
    let_go(database)
    for id in _ids_beside(database):
        with contextlib.suppress(OSError):
            _file_of(database, id).unlink(missing_ok=True)


def let_go(database: Path) -> None:
    """Drop this process's own claim on a database that is being removed."""
    with _claims.mutex:
        own = _claims.owners.get(database)
        if own is not None:
            _claims.drop(database, own)


def prefix_of(database: Path) -> str:
    """Return what the names of the owners' files of a database begin with."""
    return name_beside(database, "-owner-", _ID_LENGTH)


def ids_among(names: Iterable[str], database: Path) -> list[str]:
    """Return the ids of the owners of a database whose files' names are among some."""
    prefix = prefix_of(database)
    found = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return [id for id in found if _ID.fullmatch(id)]


def _ids_beside(database: Path) -> list[str]:
    try:
        return ids_among(os.listdir(database.parent), database)
    except OSError:
        return []


def _file_of(database: Path, owner: str) -> Path:
    return database.with_name(f"{prefix_of(database)}{owner}")


def _make(database: Path) -> Owner:
    """Make an owner's file and lock it before anybody can know its name."""
    for _ in range(_ATTEMPTS):
        owner = Owner(new_id(), database)
        try:
            if _has_file(owner, database):
                return owner
        except FileExistsError:
            # Another one's.
            raise
        except BaseException:
            owner.end()
            raise
        owner.end()
    raise DatabaseFolderError(
        "The file of an owner was removed each time it was made.", path=database, operation="claim"
    )


def _has_file(owner: Owner, database: Path) -> bool:
    """Make the file of an owner; return whether it was still in its place when it was locked."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    descriptor = owner.descriptor = os.open(owner.path, flags, 0o600)
    _let_others_look(database, descriptor)
    is_locked = _lock(descriptor)
    if is_locked is False:
        os.write(descriptor, owner_signs.HEARTBEAT)
    # Somebody who removes dead owners' files may have met it before it was locked.
    is_in_place = is_locked is not None and os.fstat(descriptor).st_nlink > 0
    if is_locked is False:
        # First it is nobody's: a signal must not have it closed twice.
        owner.descriptor = None
        os.close(descriptor)
    return is_in_place


def _let_others_look(database: Path, descriptor: int) -> None:
    """Let other users open an owner's file, unless only this one may open the database.

    There is nothing in it, and a process that cannot try its lock cannot see that its owner died.
    """
    if sys.platform == "win32":
        return
    # A file system without modes has nothing in the way of others.
    with contextlib.suppress(OSError):
        found = os.stat(database)
        if found.st_mode & 0o077 or found.st_uid != os.geteuid():
            # Not by the mode at its making, which a umask cuts.
            os.fchmod(descriptor, 0o644)


def _lock(descriptor: int) -> bool | None:
    """Return True with the lock, None if somebody looks at the file, False if it has no locks."""
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
    """Let go of the parent's claims: as long as a child has the file open, its lock stays.

    Closing frees nothing of the parent's, whose own descriptor keeps the lock; unlocking would.
    """
    global _claims  # noqa: PLW0603  # the parent's mutex is held, for ever
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
