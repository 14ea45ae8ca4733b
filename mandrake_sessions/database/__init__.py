"""The database layer: opens files, leases connections, begins and ends transactions.

It is the only folder that imports APSW, and it knows nothing of sessions.
"""
