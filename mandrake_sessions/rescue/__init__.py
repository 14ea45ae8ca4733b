"""Diagnoses a damaged or doubtful database, and reads its rows into a new file."""
