"""One open file for every path, shared by its handles, and what keeps it healthy."""
