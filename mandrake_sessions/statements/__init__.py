"""What is asked of the database, in SQLAlchemy Core: the source of ``records/sql.py``.

A statement is written here, in the module of its entity, under a name of its own in capitals.
``make sql`` compiles it into ``records/sql.py`` under the same name, and the functions of
``records`` run it from there: SQLAlchemy takes longer to import than all the rest together, so
nothing that a host runs imports this package (docs/adr/0021). What has a name in small letters is
what statements are made of.

A DELETE returns nothing, and what is needed of its row is read before: a text that is not UTF-8 is
read a second time, which a row that is gone cannot be (docs/adr/0032).
"""
