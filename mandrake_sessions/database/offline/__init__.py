"""Work on a database that no process has open: restore and removal."""
