"""The classes of each engine have what the protocols of ``engine/`` ask."""

import inspect
from typing import Any

import pytest

from mandrake_sessions.database.connection import transaction
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.open_file.others import OtherProcesses
from mandrake_sessions.database.pool.file_handle import FileHandle
from mandrake_sessions.engine import attachment, protocols
from mandrake_sessions.engine import transaction as units
from mandrake_sessions.live.hub import Hub

SQLITE = {
    units.ReadTransaction: transaction.ReadTransaction,
    units.WriteTransaction: transaction.WriteTransaction,
    protocols.OtherProcesses: OtherProcesses,
    protocols.Database: DatabaseFile,
    protocols.Handle: FileHandle,
    attachment.Attachment: Hub,
}


def members(protocol):
    """The methods and properties that a protocol and its bases name."""
    found: dict[str, Any] = {}
    for kind in reversed(protocol.__mro__):
        if getattr(kind, "_is_protocol", False):
            found |= {name: each for name, each in vars(kind).items() if name[0] != "_"}
    return found


def test_every_protocol_of_the_engine_has_a_class_of_sqlite():
    modules = (protocols, units)
    named = {
        each
        for module in modules
        for each in vars(module).values()
        if inspect.isclass(each) and getattr(each, "_is_protocol", False)
        if each.__name__ != "Protocol"
    }
    assert named == set(SQLITE)


@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        pytest.param(each, name, id=f"{each.__name__}-{name}")
        for each in SQLITE
        for name in members(each)
    ],
)
def test_a_class_takes_the_arguments_that_its_protocol_names(protocol, name):
    asked = members(protocol)[name]
    if not inspect.isfunction(asked):
        # A property, or an attribute that a constructor sets.
        bases = [each for each in SQLITE[protocol].__mro__ if each is not object]
        texts = "".join(inspect.getsource(each) for each in bases)
        assert (
            f"def {name}(self)" in texts or f"self.{name} = " in texts or f"self.{name}: " in texts
        )
        return
    given = inspect.signature(getattr(SQLITE[protocol], name)).parameters
    for parameter in inspect.signature(asked).parameters.values():
        assert parameter.name in given
        assert (parameter.default is parameter.empty) >= (
            given[parameter.name].default is parameter.empty
        )
