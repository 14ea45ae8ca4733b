"""Streams that are being written, and their watchers."""
