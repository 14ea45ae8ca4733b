"""The database layer: opens files, leases connections, begins and ends transactions.

It is the only folder that imports APSW, and it knows nothing of sessions.
"""

import sys

_is_first = "apsw" not in sys.modules

import apsw  # noqa: E402  # after it was seen whether a host has imported it

if _is_first:
    # Counting its memory, SQLite takes one lock of the whole process for each piece. A child that
    # is forked while another thread has it waits for ever at its first use (docs/adr/0013). It can
    # only be changed while SQLite is not in use; a host that came first may use it already.
    apsw.shutdown()
    apsw.config(apsw.SQLITE_CONFIG_MEMSTATUS, False)
    apsw.initialize()
