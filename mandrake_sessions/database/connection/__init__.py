"""One APSW connection: opened, checked, set, and what is read and written through it."""
