"""Health checks of an open database, and of the place of any database file."""
