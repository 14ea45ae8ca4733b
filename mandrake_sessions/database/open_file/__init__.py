"""One open database file: its connections, how it was when it was whole, and how it ends."""
