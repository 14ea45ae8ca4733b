"""How many files a pool may have open, and how a handle learns that its file gave way to others."""

from __future__ import annotations

import sys

from mandrake_sessions.database.error_codes import DESCRIPTORS_PER_FILE
from mandrake_sessions.options import PoolOptions

if sys.platform != "win32":
    import resource


def most_open(options: PoolOptions) -> int:
    """Return how many files may be open: as the host wants, and as the system allows.

    A quarter of the descriptors is left to the host. Asked each time: a host may raise its limit.
    """
    if sys.platform == "win32":
        return options.max_open
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return options.max_open
    return min(options.max_open, max(1, limit * 3 // 4 // DESCRIPTORS_PER_FILE))
