"""The interface of an engine for the layers above: the same for SQLite and for a server."""
