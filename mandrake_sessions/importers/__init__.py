"""Other systems' databases read into ours: the source stays as it is, to the byte."""

from mandrake_sessions.importers.mandrake import import_mandrake
from mandrake_sessions.importers.report import ImportProgress, ImportReport

__all__ = ["ImportProgress", "ImportReport", "import_mandrake"]
