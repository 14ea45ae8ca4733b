"""What an engine is to the layers above it: the same for SQLite and for a server."""
