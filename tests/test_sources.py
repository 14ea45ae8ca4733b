"""Rules that the sources show, and the imports and openings of a process: one SQLite library."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import mandrake_sessions
from mandrake_sessions import MandrakeManager, SessionManager
from mandrake_sessions.faces.manager import ManagerFace

PROJECT = Path(__file__).parent.parent
SOURCES = {
    str(path.relative_to(PROJECT)): path
    for folder in ("mandrake_sessions", "migrations", "examples", "tools")
    for path in sorted((PROJECT / folder).rglob("*.py"))
}
SECOND_SQLITE = {"sqlite3", "_sqlite3", "pysqlite3", "pysqlite2", "aiosqlite", "sqlcipher3"}
EXTRAS = {"typer", "rich", "click"}
# A URL, or the name of a driver, that would bring the standard library's SQLite.
FORBIDDEN_TEXT = re.compile(
    r"sqlite(\+\w+)?:/|pysqlite|aiosqlite|_sqlite3\b.*import", re.IGNORECASE
)

# Modules and functions that open files by themselves. Closing one drops SQLite's locks on it.
FILE_MODULES = {"shutil", "hashlib", "tempfile", "fileinput", "mmap", "io", "zipfile", "tarfile"}
FILE_CALLS = {
    "open",
    "fdopen",
    "read_bytes",
    "read_text",
    "write_bytes",
    "write_text",
    "copyfile",
    "copy2",
    "touch",
    "sendfile",
    "truncate",
}
# What may be used nevertheless, and why it touches no file that SQLite has open.
ALLOWED = {
    "mandrake_sessions/database/error_codes.py": {
        "shutil": "disk_usage asks the folder",
        "open": "/dev/null, to see whether descriptors are free",
    },
    "mandrake_sessions/database/sqlite_library.py": {"open": "reads /proc/self/maps"},
    "mandrake_sessions/database/open_file/displacement.py": {
        "open": "makes a new file with O_EXCL, for a log"
    },
    "mandrake_sessions/database/openers.py": {
        "tempfile": "a file to lock, to see whether the system shows locks"
    },
    "mandrake_sessions/database/files/owner.py": {"open": "an owner's file, never a database"},
    "mandrake_sessions/database/files/owner_signs.py": {
        "open": "an owner's file, never a database"
    },
    "mandrake_sessions/database/files/creation.py": {
        "open": "opens the folder of a new file, for its lock and for fsync"
    },
    "mandrake_sessions/database/files/folders.py": {
        "open": "folders, and a new file, which is not there yet"
    },
    "mandrake_sessions/database/files/atomic.py": {
        "open": "makes a new file with O_EXCL; opens it, and its folder, for fsync"
    },
    "mandrake_sessions/database/files/views.py": {
        "open": "reads /proc/locks; makes a new file with O_EXCL, to see where it appears"
    },
    "mandrake_sessions/database/files/turnstile.py": {
        "open": "a file of its own, never a database"
    },
    "mandrake_sessions/database/files/raw.py": {"open": "writes a copy that no process has open"},
    "mandrake_sessions/database/sidecars.py": {"hashlib": "of a file's name, never of its bytes"},
    "mandrake_sessions/database/files/mounts.py": {"open": "reads /proc/self/mountinfo"},
    "mandrake_sessions/rescue/contents.py": {"tempfile": "a private folder for a copy"},
    "mandrake_sessions/database/lock_holder.py": {"read_text": "reads /proc/<pid>"},
    "mandrake_sessions/database/kernel_locks.py": {"open": "reads /proc/locks"},
    "mandrake_sessions/database/migrations/migrate.py": {
        "io": "StringIO for the SQL of offline mode"
    },
    "mandrake_sessions/importers/source.py": {
        "open": "copies another system's database, after it has seen that this process has it not",
        "tempfile": "a private folder for that copy",
    },
    "tools/generate/__main__.py": {"write_text": "writes four modules of the package"},
    "tools/generate/faces.py": {"write_text": "writes the modules of faces"},
    "tools/generate/messages.py": {"read_text": "the source of errors"},
    "tools/generate/signatures.py": {"read_text": "the sources of units"},
    "mandrake_sessions/concurrency/inherited.py": {
        "mmap": "a mapping without a file, in the place of the parent's",
        "open": "in a forked child, before it uses SQLite",
    },
    "tools/coverage.py": {
        "read_text": "the sources",
        "tempfile": "a folder for the records",
        "write_text": "the settings of a run",
    },
    "tools/coverage_recorder.py": {"open": "the record of a process"},
    "tools/docstrings.py": {"read_text": "the checkout"},
    "tools/words.py": {"io": "StringIO for comments", "read_text": "the checkout"},
    "tools/generate/ddl.py": {"read_text": "the project's version"},
    "mandrake_sessions/testing/power.py": {
        "write_bytes": "files after a power cut, before they are opened"
    },
    "mandrake_sessions/cli/app.py": {"open": "/dev/null in the place of a closed stream"},
    "examples/demo/command.py": {
        "tempfile": "a folder for the demo's databases",
    },
    "examples/demo/ledger.py": {
        "hashlib": "digests of answers",
        "open": "the ledger, a text file of its own",
        "read_bytes": "the ledger again",
    },
}
# Our own functions of these names, which open through SQLite.
OWN_OPEN = {"DatabaseFile"}

# Modules above the limit, each with its reason. Generated modules have none.
LONG_MODULES = {
    "mandrake_sessions/rescue/diagnosis.py": "every check of a file that may be damaged",
    "mandrake_sessions/database/pool/pool.py": "one lock and the table of slots behind it",
    "mandrake_sessions/database/open_file/file.py": "one open file: every way in",
    "mandrake_sessions/database/connection/dialect.py": "what SQLAlchemy asks a dialect, all of it",
    "mandrake_sessions/database/open_file/lifecycle.py": "the states of one open file, to its end",
    "mandrake_sessions/database/pool/open_files.py": "opening, closing and parking of slots",
    "mandrake_sessions/database/files/turnstile.py": "one lock: taken, awaited, passed by",
    "mandrake_sessions/live/streaming/stream.py": "the state of one stream, behind one mutex",
    "mandrake_sessions/hosts.py": "the registry: one method for each thing done with a workspace",
    "mandrake_sessions/manager.py": "the life of one database, its streams and its watchers",
    "mandrake_sessions/errors.py": "every exception, and the tree of them",
}
MOST_LINES = 400


def imported(tree):
    """Every module that is imported anywhere in a file, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            for argument in node.args:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value), node.lineno


def is_generated(tree):
    return "Made by ``make " in (ast.get_docstring(tree) or "")


def called(node):
    function = node.func
    if isinstance(function, ast.Attribute):
        owner = function.value
        is_own = isinstance(owner, ast.Name) and owner.id in OWN_OPEN
        return None if is_own else function.attr
    return function.id if isinstance(function, ast.Name) else None


def string_constants(tree):
    """Every text of the program; docstrings say what is forbidden and why."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from [] if id(node) in documentation else [(node.value, node.lineno)]


def second_sqlite(tree):
    """Where a second SQLite library comes in."""
    found = [
        (name, line)
        for name, line in imported(tree)
        if SECOND_SQLITE & {name.split(".")[0], name.split(".")[-1]} or "pysqlite" in name
    ]
    return found + [each for each in string_constants(tree) if FORBIDDEN_TEXT.search(each[0])]


def file_access(tree):
    """Which modules and functions that open files are used."""
    modules = {name.split(".")[0] for name, _ in imported(tree)} & FILE_MODULES
    calls = {called(node) for node in ast.walk(tree) if isinstance(node, ast.Call)} & FILE_CALLS
    return modules | calls


@pytest.fixture(scope="module")
def trees():
    return {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}


def test_the_sources_are_found():
    assert {"mandrake_sessions/manager.py", "migrations/env.py"} < SOURCES.keys()
    assert len(SOURCES) > 40


def test_no_second_sqlite_library_is_used(trees):
    found = {name: second_sqlite(tree) for name, tree in trees.items()}

    assert {name: each for name, each in found.items() if each} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import sqlite3",
        "import sqlite3.dbapi2 as db",
        "def f():\n    from sqlite3 import connect",
        "from sqlalchemy.dialects.sqlite import pysqlite",
        "import importlib\nimportlib.import_module('aiosqlite')",
        "create_engine('sqlite:///db.sqlite')",
        "url = f'sqlite+aiosqlite:///{path}'",
        "registry.load('sqlite.pysqlite')",
    ],
)
def test_the_search_for_a_second_library_finds(source):
    assert second_sqlite(ast.parse(source))


def test_no_database_file_is_opened_except_through_sqlite(trees):
    found = {name: file_access(tree) - ALLOWED.get(name, {}).keys() for name, tree in trees.items()}

    assert {name: each for name, each in found.items() if each} == {}


def test_every_allowed_exception_is_still_needed(trees):
    assert {name: set(reasons) for name, reasons in ALLOWED.items()} == {
        name: file_access(trees[name]) & reasons.keys() for name, reasons in ALLOWED.items()
    }


@pytest.mark.parametrize(
    "source",
    ["open(path)", "path.open('rb')", "import shutil", "os.open(path, 0)", "p.read_bytes()"],
)
def test_the_search_for_opened_files_finds(source):
    assert file_access(ast.parse(source))


def test_no_module_is_longer_than_its_limit(trees):
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in SOURCES.items()}
    written = {name for name, tree in trees.items() if not is_generated(tree)}
    long = {name: lines[name] for name in written if lines[name] > MOST_LINES}

    assert long.keys() == LONG_MODULES.keys(), long


def test_every_module_opens_with_a_docstring(trees):
    empty = {name for name, tree in trees.items() if not tree.body}

    assert [n for n, tree in trees.items() if n not in empty and not ast.get_docstring(tree)] == []


def test_every_public_name_is_there_and_documented():
    names = mandrake_sessions.__all__
    assert len(names) == len(set(names))
    undocumented = []
    for name in names:
        value = getattr(mandrake_sessions, name)
        if not inspect.isclass(value):
            continue
        members = [(name, value)] + [
            (f"{name}.{each}", member)
            for each, member in inspect.getmembers_static(value)
            if not each.startswith("_") and (callable(member) or isinstance(member, property))
        ]
        undocumented += [each for each, member in members if not own_docstring(member)]
    assert undocumented == []
    for name in ("default_pool", "install_shutdown_hook"):
        assert getattr(mandrake_sessions, name).__doc__


def own_docstring(member):
    # A docstring that is inherited says nothing of this member.
    return member.__dict__.get("__doc__") if inspect.isclass(member) else member.__doc__


def test_every_error_is_public_and_drawn_in_the_tree():
    errors = importlib.import_module("mandrake_sessions.errors")
    classes = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    ]

    assert set(classes) <= set(mandrake_sessions.__all__)
    tree = errors.__doc__ or ""
    assert [name for name in classes if not re.search(rf"\b{name}\b", tree)] == []
    assert all(
        issubclass(getattr(errors, name), mandrake_sessions.MandrakeSessionsError)
        for name in classes
    )


# -- what an import and an opening do ---------------------------------------------------------

ROUND = """
from mandrake_sessions import SessionManager
with SessionManager(sys.argv[1]) as sessions:
    session = sessions.create_session("title", metadata={"a": 1})
    response = sessions.create_round(session.id, "question").response
    turn = sessions.create_turn(response.id, tool_calls=[{"call": {}}])
    sessions.update_turn(turn.id, status="completed")
    assert sessions.render_session_history(session.id).rounds[0].turns
send(sorted(sys.modules))
"""


SLOW_TO_IMPORT = {"sqlalchemy", "alembic", "mako", "asyncio", "structlog", "rich", "typer"}
DAY = """
from mandrake_sessions import MandrakeManager, NewTurn, SessionManager
with SessionManager(sys.argv[1]) as sessions:
    session = sessions.create_session("title", metadata={"a": 1})
    sessions.get_session(session.id), sessions.find_session(session.id)
    sessions.list_sessions(), sessions.count_sessions()
    sessions.update_session(session.id, title="other", expected_revision=0)
    exchange = sessions.record_round(session.id, "question", [NewTurn(content="answer")])
    round_ = sessions.create_round(session.id, "question")
    response_id = round_.response.id
    sessions.get_round(round_.id), sessions.get_round_by_response(response_id)
    sessions.get_current_round(session.id), sessions.list_rounds(session.id)
    sessions.update_request(round_.request.id, content="another question")
    sessions.get_request(round_.request.id), sessions.get_response(response_id)
    turn = sessions.create_turn(response_id, tool_calls=[{"call": {}}])
    sessions.update_turn(turn.id, content="text", model="any")
    sessions.update_turn(turn.id, status="completed")
    sessions.get_turn(turn.id), sessions.get_latest_turn(response_id)
    sessions.list_turns(response_id), sessions.get_streaming_status(response_id)
    updates = []
    with (
        sessions.watch_response(response_id) as watch,
        sessions.watch_session(session.id) as events,
        sessions.track_streaming_turns(response_id, updates.append),
        sessions.stream_turn(response_id, model="any") as writer,
    ):
        with sessions.add_turn_update_listener(writer.id, updates.append):
            writer.write("to")
            writer.set_usage(input_tokens=1)
            writer.flush()
            writer.write("ken")
            assert next(iter(watch)).turn.id and next(iter(events))
    assert sessions.get_turn(writer.id).content == "token"
    assert sessions.recover_interrupted() == []
    with sessions.transaction() as tx:
        tx.delete_turn(turn.id)
    sessions.transact(lambda tx: tx.get_session(session.id))
    assert len(list(sessions.iter_session_history(session.id))) == 2
    assert sessions.render_session_history(session.id).rounds[0].turns
    assert sessions.get_session_usage(session.id).input_tokens == 1
    sessions.health(), sessions.stats()
    sessions.delete_turn(writer.id), sessions.delete_round(round_.id)
    sessions.delete_session(session.id)
with MandrakeManager(sys.argv[2]) as mandrake:
    (workspace,) = mandrake.list_workspaces()
    assert mandrake.get_workspace(workspace.id).sessions.count_sessions() == 0
send(sorted(sys.modules))
"""


def test_the_day_of_a_host_uses_every_method():
    methods = {name for name in vars(ManagerFace) if not name.startswith("_")}

    assert len(methods) > 25
    assert {name for name in methods if f".{name}(" not in DAY} == set()


def test_the_day_of_a_host_loads_nothing_slow_and_no_second_sqlite(
    path, pool, tmp_path, start_child
):
    with MandrakeManager(tmp_path / "root", pool=pool) as mandrake:
        mandrake.create_workspace("work")
    child = start_child(DAY, path, tmp_path / "root")
    loaded = {name.split(".")[0] for name in child.receive()}
    child.finish()

    assert "mandrake_sessions" in loaded
    assert loaded & (SLOW_TO_IMPORT | SECOND_SQLITE) == set()


def test_a_new_database_loads_nothing_slow_and_no_second_sqlite(path, start_child):
    child = start_child(ROUND, path)
    loaded = {name.split(".")[0] for name in child.receive()}
    child.finish()

    assert "mandrake_sessions" in loaded
    assert loaded & (SLOW_TO_IMPORT | SECOND_SQLITE) == set()


LATE = {
    "mandrake_sessions.aio",
    "mandrake_sessions.cli",
    "mandrake_sessions.database.connection.backup",
    "mandrake_sessions.database.health",
    "mandrake_sessions.database.offline",
    "mandrake_sessions.database.pool.monitor",
    "mandrake_sessions.importers",
    "mandrake_sessions.rescue",
    "mandrake_sessions.schema",
    "mandrake_sessions.shutdown",
    "mandrake_sessions.statements",
    "mandrake_sessions.testing",
}
"""Parts that a host uses seldom, or not before it runs."""


def test_an_import_and_a_round_load_none_of_the_late_parts(path, start_child):
    child = start_child(ROUND, path)
    loaded = set(child.receive())
    child.finish()

    assert "mandrake_sessions.manager" in loaded
    assert loaded & LATE == set()


def test_each_late_name_is_found_at_its_first_use(start_child):
    child = start_child(
        """
import mandrake_sessions
late = [name for name in mandrake_sessions.__all__ if name not in vars(mandrake_sessions)]
assert set(late) <= set(dir(mandrake_sessions))
found = [getattr(mandrake_sessions, name).__name__ for name in late]
assert set(late) <= set(vars(mandrake_sessions)) and not hasattr(mandrake_sessions, "Typo")
send([late, found])
"""
    )
    late, found = child.receive()
    child.finish()

    assert {"HealthMonitor", "diagnose", "install_shutdown_hook", "salvage"} <= set(late)
    assert found == late


def test_the_library_works_where_the_extras_and_sqlite3_are_not_installed(path, start_child):
    """Not by looking at what is loaded: structlog loads rich where it is there."""
    missing = [*SECOND_SQLITE, *EXTRAS]
    child = start_child(f"sys.modules.update(dict.fromkeys({missing!r}))\n{ROUND}", path)

    assert "mandrake_sessions" in child.receive()
    child.finish()


def test_only_the_command_and_the_demo_import_what_the_extra_brings(trees):
    importers = {
        name
        for name, tree in trees.items()
        if {module.split(".")[0] for module, _ in imported(tree)} & EXTRAS
    }

    allowed = ("mandrake_sessions/cli/", "examples/")
    assert [name for name in importers if not name.startswith(allowed)] == []


def test_opening_a_database_at_head_takes_a_handful_of_statements(path, pool, statements):
    SessionManager(path, pool=pool).init().close()
    statements.take()

    with SessionManager(path, pool=pool):
        issued = statements.take()

    assert issued
    # One of them looks for turns of hosts that have died.
    # Two of them ask whether a log is missing.
    assert len(issued) <= 18, issued
    assert not [sql for sql in issued if not sql.startswith(("PRAGMA", "SELECT"))]
