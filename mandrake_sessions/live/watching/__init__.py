"""Watchers and listeners: their targets, the thread that reads for them, their mailboxes."""
