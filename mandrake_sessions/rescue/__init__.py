"""A database that is damaged or in doubt: what is wrong with it, and what can be read of it."""
