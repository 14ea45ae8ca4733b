"""Writes modules of the library from what SQLAlchemy describes: ``python -m tools.generate``."""
