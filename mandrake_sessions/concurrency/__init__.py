"""Threads, forks and signals: blocks that end, waits without locks, unforeseen calls."""
