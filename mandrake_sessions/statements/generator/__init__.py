"""From the statements and tables that SQLAlchemy describes to the modules that the library runs."""
