"""Versions of the library side by side: this checkout, and another commit of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.process import PROJECT

PLACE = PROJECT / ".cache" / "against"


class Checkout(msgspec.Struct, frozen=True):
    """A version of the library.

    Attributes:
        root: the folder that holds the package.
        python: an interpreter that has what the package requires.
    """

    root: Path
    python: Path

    def path_in(self, folder: Path) -> tuple[Path, Path]:
        """Return where its processes look for modules.

        Args:
            folder: gets a link to this checkout's ``benchmarks``, which comes before that of the
                version.
        """
        link = folder / "benchmarks"
        if not link.exists():
            link.symlink_to(Path(__file__).parent, target_is_directory=True)
        return folder, self.root


def this_checkout() -> Checkout:
    """Return the version that this module belongs to."""
    return Checkout(PROJECT, Path(sys.executable))


def checkout(commit: str) -> Checkout:
    """Return another version: a git worktree of the commit with what its own lock file installs.

    It is made below ``.cache`` at the first time, and kept.

    Raises:
        CalledProcessError: there is no such commit, or it cannot be installed.
    """
    name = _git("rev-parse", "--verify", "--short=12", f"{commit}^{{commit}}").strip()
    root = PLACE / name
    if not root.exists():
        # By force: git remembers one that `make clean` has removed.
        _git("worktree", "add", "--quiet", "--force", "--detach", str(root), name)
    subprocess.run(["make", "install"], cwd=root, check=True)
    return Checkout(root, root / ".venv" / "bin" / "python")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout
