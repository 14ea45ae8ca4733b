"""One APSW connection: how it is opened, checked and configured; its transactions and copies."""
