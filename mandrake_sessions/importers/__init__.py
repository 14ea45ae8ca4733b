"""Imports other systems' databases; the source does not change by one byte."""

from mandrake_sessions.importers.mandrake import import_mandrake
from mandrake_sessions.importers.report import ImportProgress, ImportReport

__all__ = ["ImportProgress", "ImportReport", "import_mandrake"]
