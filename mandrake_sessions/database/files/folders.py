"""An open folder: operations stay in it, even if another folder gets its name."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.error_codes import pass_on_timeout
from mandrake_sessions.database.files.paths import Identity, refuse_link
from mandrake_sessions.errors import DatabasePathError

_HAS_DESCRIPTORS: Final = os.open in os.supports_dir_fd and os.listdir in os.supports_fd
_NO_LINK: Final = (
    getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
)
# With O_PATH a folder on the way need not be readable.
_HAS_WALK: Final = hasattr(os, "O_PATH")
_ON_THE_WAY: Final = _NO_LINK | getattr(os, "O_PATH", 0)


class Folder:
    """A folder that was reached through no symbolic link.

    Args:
        path: its real path.
        descriptor: the descriptor of the open folder; None where the system has no calls relative
            to a descriptor, so that the path is used.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self.descriptor = descriptor

    def stat(self, name: str) -> os.stat_result | None:
        """Return the status of a name in it, without following a link; None if it is missing."""
        try:
            return os.stat(self._reach(name), dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def identify(self, name: str) -> Identity | None:
        """Return the identity of a file in it, or None if the name is missing.

        Raises:
            DatabasePathError: the name is that of a link or of something else than a file.
        """
        found = self.stat(name)
        if found is None:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise DatabasePathError(
                "A link, a folder or a device is there, not a file.", path=self.path / name
            )
        return found.st_dev, found.st_ino

    def names(self) -> list[str]:
        """Return the names in it; none if it may not be read."""
        with contextlib.suppress(OSError):
            return os.listdir(self.path if self.descriptor is None else self.descriptor)
        return []

    def make(self, name: str) -> None:
        """Make an empty private file; raise FileExistsError if the name exists."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        os.close(os.open(self._reach(name), flags, 0o600, dir_fd=self.descriptor))

    def make_whole(self, name: str, content: bytes) -> bool:
        """Make a file whose content is on the disk when it gets its name.

        A failure leaves nothing: the file has no name until then, and never has two.

        Returns:
            Whether it was made; False if the system has no such files, or there is no space.

        Raises:
            FileExistsError: the name exists.
        """
        if sys.platform != "linux" or self.descriptor is None:
            return False
        nameless: int | None = None
        try:
            nameless = _write_nameless(self.descriptor, content)
            # An absolute path needs no src_dir_fd, but without one Python does not follow the link.
            os.link(
                f"/proc/self/fd/{nameless}",
                name,
                src_dir_fd=nameless,
                dst_dir_fd=self.descriptor,
                follow_symlinks=True,
            )
        except FileExistsError:
            raise
        except OSError as error:
            pass_on_timeout(error)
            return False
        finally:
            if nameless is not None:
                os.close(nameless)
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            pass_on_timeout(error)
        return True

    def unlink(self, name: str) -> None:
        """Remove a name if it exists, never the target of a link."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._reach(name), dir_fd=self.descriptor)

    def rmdir(self, name: str) -> None:
        """Remove an empty folder in it; raise OSError for anything else."""
        os.rmdir(self._reach(name), dir_fd=self.descriptor)

    def _reach(self, name: str) -> str | Path:
        return self.path / name if self.descriptor is None else name


def _write_nameless(folder: int, content: bytes) -> int:
    """Make a file without a name; return a descriptor by which it can get one.

    The descriptor that wrote the file is closed before. Closing a descriptor that can read or write
    drops the locks of this process, and once the file has a name another thread may have it open.
    """
    if sys.platform != "linux":
        raise NotImplementedError
    descriptor = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
        return os.open(f"/proc/self/fd/{descriptor}", os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(descriptor)


@block
def opened_folder(path: Path) -> Iterator[Folder]:
    """Open a folder for a block, following no link on the way.

    Args:
        path: its real path; a link on it was put there after the path was resolved.

    Raises:
        DatabasePathError: a link is on the path.
        OSError: the folder cannot be opened, or is none.
    """
    if not _HAS_DESCRIPTORS:
        refuse_link(path)
        yield Folder(path, None)
        return
    if _HAS_WALK:
        descriptor = _walk(path)
    else:
        # Without O_PATH a folder that may only be searched cannot be opened, so the path is checked
        # before and after.
        refuse_link(path)
        descriptor = os.open(path, _NO_LINK | os.O_RDONLY)
    try:
        if not _HAS_WALK:
            refuse_link(path)
        yield Folder(path, descriptor)
    finally:
        os.close(descriptor)


def _walk(path: Path) -> int:
    descriptor = os.open(path.anchor, _ON_THE_WAY)
    try:
        for part in path.parts[1:]:
            inner = os.open(part, _ON_THE_WAY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        with contextlib.suppress(PermissionError):
            # Opened again to read its names; a folder that may only be searched stays usable.
            inner = os.open(".", _NO_LINK | os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
    except OSError:
        os.close(descriptor)
        # The system's errors do not distinguish a link from a name that is no folder.
        refuse_link(path)
        raise
    return descriptor
