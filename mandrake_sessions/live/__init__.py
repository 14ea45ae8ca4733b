"""Streams that are being written, and those who watch them."""
