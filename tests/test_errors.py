"""What an error says by itself, and that it can be sent to another process."""

import inspect
import json
import pickle
import subprocess
import sys

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


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_line_of_the_docstring_is_the_message(kind):
    if kind is not errors.StaleRevisionError:
        assert kind().message == kind.__doc__.split("\n")[0]


def test_every_message_is_the_same_without_docstrings():
    program = (
        "import json\n"
        "from mandrake_sessions import errors\n"
        "print(json.dumps({name: kind.default_message for name, kind in vars(errors).items()\n"
        "    if hasattr(kind, 'default_message')}))\n"
        "assert json.__doc__ is None\n"
    )
    said = subprocess.check_output([sys.executable, "-OO", "-c", program], text=True)

    assert json.loads(said) == {kind.__name__: kind.default_message for kind in KINDS}


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
