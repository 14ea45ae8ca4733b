"""Writes the modules of the library that are made from descriptions."""
