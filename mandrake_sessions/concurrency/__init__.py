"""Threads, forks and signals: blocks that end, waits without locks, calls that come unforeseen."""
