"""Watchers and listeners: what they watch, the thread that reads for them, their mailboxes."""
