"""Functions that prepare a unit of work: rows in, models out, one module for each entity.

A function checks its arguments, makes ids and the time and encodes JSON, all before a lease is
taken, and returns a closure over a transaction. Between BEGIN and COMMIT the closure runs SQL only:
``sql.NAME``, which ``statements`` describes under that name. It changes no state of its own, so it
may run again if its transaction was lost.

A closure that raises may have written before: it belongs in its own transaction or savepoint.
"""
