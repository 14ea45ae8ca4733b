"""Turns that are being written: their texts, the thread that stores them, their end."""
