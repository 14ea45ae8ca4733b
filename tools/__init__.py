"""Tools for working on the library; not in the wheel."""
