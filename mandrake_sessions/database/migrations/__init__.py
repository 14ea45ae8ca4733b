"""The schema: a fresh file gets it as a whole, an older one by migrations."""
