"""The limit of open files of a pool."""

from __future__ import annotations

import sys

from mandrake_sessions.database.error_codes import DESCRIPTORS_PER_FILE
from mandrake_sessions.options import PoolOptions

if sys.platform != "win32":
    import resource


def most_open(options: PoolOptions) -> int:
    """Return how many files may be open, by the options and the limit of the system.

    A quarter of the descriptors is left to the host. The limit is read each time, because a host
    may raise it.
    """
    if sys.platform == "win32":
        return options.max_open
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return options.max_open
    return min(options.max_open, max(1, limit * 3 // 4 // DESCRIPTORS_PER_FILE))
