"""Functions that prepare a unit of work: rows in, models out, one module for each entity.

A function checks its arguments, makes ids and the time and encodes JSON, all before a lease is
taken, and returns a closure over a transaction. What runs between BEGIN and COMMIT is SQL only:
``sql.NAME``, which is described under that name in ``statements``.
The closure holds nothing that it changes, so it may be run again if its transaction was lost.

A closure that raises may have written before: it belongs in a transaction or savepoint of its own.
"""
