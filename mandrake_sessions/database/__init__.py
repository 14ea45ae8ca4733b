"""The database layer: opens files, leases connections, begins and ends transactions.

It is the only folder that imports APSW, and it knows nothing of sessions.
"""

import sys

_is_first = "apsw" not in sys.modules

import apsw  # noqa: E402  # after it was seen whether a host has imported it

if _is_first:
    # To count its memory, SQLite takes one lock of the whole process for each allocation. A child
    # that is forked while another thread holds the lock waits without end at its first allocation
    # (docs/adr/0013). The setting can only be changed while SQLite is not in use, and a host that
    # has imported APSW before may use it already.
    apsw.shutdown()
    apsw.config(apsw.SQLITE_CONFIG_MEMSTATUS, False)
    apsw.initialize()
