"""Files and their bytes: names, folders, claims, locks and pages, without an SQL statement."""
