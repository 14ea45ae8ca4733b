"""One open database file: its connections, its checks, and how it is retired and closed."""
