"""The statements of the library in SQLAlchemy Core: the source of ``records/sql.py``.

A statement is written here, in the module of its entity, under its own name in capitals. ``make
sql`` compiles it into ``records/sql.py`` under the same name, and the functions of ``records`` run
it from there. SQLAlchemy takes longer to import than all the rest together, so no code that a host
runs imports this package (docs/adr/0021). Names in small letters are parts of statements.

A DELETE returns nothing, and the needed columns of its row are read before: a text that is not
UTF-8 is read a second time, which a deleted row cannot be (docs/adr/0032).
"""
