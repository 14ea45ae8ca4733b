"""The SQLite engine implements the protocols that the layers above call."""

import inspect

import pytest

from mandrake_sessions.database.connection import transaction
from mandrake_sessions.database.open_file import others
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.pool.file_handle import FileHandle
from mandrake_sessions.engine import protocols
from mandrake_sessions.engine import transaction as engine_transaction

IMPLEMENTED = [
    (protocols.Handle, FileHandle),
    (protocols.Database, DatabaseFile),
    (protocols.OtherProcesses, others.OtherProcesses),
    (engine_transaction.ReadTransaction, transaction.ReadTransaction),
    (engine_transaction.WriteTransaction, transaction.WriteTransaction),
]


def arguments(function):
    """The names and kinds of a method's arguments, and those that a caller may leave out."""
    found = inspect.signature(function).parameters.values()
    optional = {each.name for each in found if each.default is not each.empty}
    return [(each.name, each.kind) for each in found], optional


@pytest.mark.parametrize(
    ("protocol", "kind"), IMPLEMENTED, ids=lambda it: f"{it.__module__}.{it.__name__}"
)
def test_a_class_of_the_engine_has_what_its_protocol_names(protocol, kind):
    members = {
        name: member
        for each in protocol.__mro__
        for name, member in vars(each).items()
        if not name.startswith("_")
    }
    assert members
    for name, member in members.items():
        # A property of a protocol may be an attribute that the class sets when it is made.
        found = inspect.getattr_static(kind, name, None)
        assert inspect.isfunction(found) == inspect.isfunction(member), name
        if inspect.isfunction(member):
            wanted, may_be_left_out = arguments(member)
            present, optional = arguments(found)
            assert (name, present) == (name, wanted)
            assert may_be_left_out <= optional, name
