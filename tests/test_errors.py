"""What an error says by itself, and that it can be sent to another process."""

import ast
import inspect
import json
import pickle
import subprocess
import sys

import jedi
import pytest

from mandrake_sessions import (
    AlreadyExistsError,
    ConstraintViolationError,
    DatabaseBusyError,
    DatabaseMissingError,
    MandrakeSessionsError,
    NotFoundError,
    RoundNotFoundError,
    TurnAlreadyExistsError,
    errors,
)
from mandrake_sessions.ids import MAX_ID_LENGTH

KINDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, MandrakeSessionsError)
]


FIRST_LINES = {
    node.name: (ast.get_docstring(node) or "").split("\n")[0]
    for node in ast.parse(inspect.getsource(errors)).body
    if isinstance(node, ast.ClassDef)
}
"""The first lines of the docstrings, as tools find them that read the source."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_line_of_the_docstring_is_the_message(kind):
    assert kind.default_message == FIRST_LINES[kind.__name__]
    if kind is not errors.StaleRevisionError:
        assert kind().message == kind.default_message


def test_every_message_is_the_same_without_docstrings():
    program = (
        "import json\n"
        "from mandrake_sessions import errors\n"
        "kinds = [kind for kind in vars(errors).values() if hasattr(kind, 'default_message')]\n"
        "assert not any(kind.__doc__ for kind in kinds)\n"
        "print(json.dumps({kind.__name__: kind.default_message for kind in kinds}))\n"
    )
    said = subprocess.check_output([sys.executable, "-OO", "-c", program], text=True)

    assert json.loads(said) == FIRST_LINES


def test_an_error_of_a_host_has_its_own_message_or_its_name():
    class QuotaError(MandrakeSessionsError):
        """The quota is used up."""

    class SilentError(DatabaseMissingError):
        pass

    assert str(QuotaError()) == "The quota is used up."
    assert str(SilentError()) == "SilentError"


def test_editors_show_the_message_of_every_error():
    names = [kind.__name__ for kind in KINDS]
    lines = [f"from mandrake_sessions import {name}" for name in names]
    script = jedi.Script("\n".join(lines))

    shown = {}
    for line, name in enumerate(names, start=1):
        (found,) = script.infer(line, len(lines[line - 1]))
        shown[name] = found.docstring(raw=True).split("\n")[0]
    assert all(shown.values())
    assert shown == FIRST_LINES


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NotFoundError("x"), "There is no row with the id 'x'."),
        (RoundNotFoundError("x"), "There is no round with the id 'x'."),
        (RoundNotFoundError(message="The session has no round."), "The session has no round."),
        (AlreadyExistsError("x"), "There is already a row with the id 'x'."),
        (TurnAlreadyExistsError("x"), "There is already a turn with the id 'x'."),
        (TurnAlreadyExistsError(), "The id or index of the turn is taken."),
    ],
)
def test_an_error_of_a_row_names_it(error, message):
    assert str(error) == message


@pytest.mark.parametrize("kind", [RoundNotFoundError, TurnAlreadyExistsError])
def test_a_long_text_in_the_place_of_an_id_is_not_in_the_message(kind):
    text = "a pasted text " * 100_000
    error = kind(text)

    assert error.id == text
    assert text[:MAX_ID_LENGTH] in str(error)
    assert len(str(error)) < MAX_ID_LENGTH + 100
    longest = "x" * MAX_ID_LENGTH
    assert f"{longest!r}." in str(kind(longest))


@pytest.mark.parametrize(
    "error",
    [
        RoundNotFoundError("x"),
        DatabaseMissingError(path="db.sqlite", operation="open"),
        DatabaseBusyError(phase="begin", waited=1.5, path="db.sqlite", attempts=3),
        ConstraintViolationError(columns=("rounds.id",), result_code=1555),
        errors.StaleRevisionError(expected=1, actual=2),
    ],
)
def test_an_error_is_the_same_in_another_process(error):
    if isinstance(error, ConstraintViolationError):
        error.position = 2
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_context_that_no_error_has_is_refused():
    for kind in (DatabaseBusyError, ConstraintViolationError):
        with pytest.raises(TypeError):
            kind(where="db.sqlite")
