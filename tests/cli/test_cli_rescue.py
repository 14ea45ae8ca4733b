"""``doctor``, ``restore`` and ``salvage``: their output for people, and the exit codes."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import apsw
import pytest
from cli_kit import Ended
from kits.waiting import SOON

from mandrake_sessions import (
    ConnectionPool,
    HealthLevel,
    InvalidArgumentError,
    NewTurn,
    SessionManager,
    diagnose,
)

Run = Callable[..., Ended]


@pytest.fixture
def database(ready_path: Path, pool: ConnectionPool) -> Path:
    """A database with one session, closed."""
    with SessionManager(ready_path, pool=pool) as sessions:
        session = sessions.create_session("Kept")
        sessions.record_round(session.id, "Hello?", [NewTurn(content="Yes. " * 3000)])
    return ready_path


@pytest.fixture
def copy(database: Path, pool: ConnectionPool) -> Path:
    with SessionManager(database, pool=pool) as sessions:
        return sessions.backup(database.with_name("copy.sqlite"))


def checks(ended: Ended) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in ended.json()["checks"]}


def bad(ended: Ended) -> dict[str, str]:
    """Return the checks that are not ok, with how they came out; each must give advice."""
    found = {name: each for name, each in checks(ended).items() if each["status"] != "ok"}
    assert all(each["advice"] and each["detail"] for each in found.values()), found
    return {name: each["status"] for name, each in found.items()}


def files(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.parent.iterdir() if each.is_file()}


# -- doctor ---------------------------------------------------------------------------------------


def test_a_sound_file_is_fine_and_nothing_is_made(run: Run, database: Path) -> None:
    before = files(database)

    ended = run("doctor", database, "--full", "--json")

    assert ended.code == 0
    assert ended.json()["status"] == "ok"
    assert set(checks(ended)) == {
        *("file", "folder", "sqlite", "disk", "journal", "set_aside", "owners", "partial_files"),
        *("file_system", "names"),
        *("turnstile", "locks", "header", "size", "log", "own_log", "schema", "integrity"),
        *("references", "texts", "streaming"),
    }
    assert files(database) == before


def test_the_output_for_people_names_the_remedy(run: Run, database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(4096 * 5)
        file.write(bytes(4096))

    ended = run("doctor", database)

    assert ended.code == 5
    assert "What to do" in ended.stdout
    assert f"mandrake-sessions salvage {shlex.quote(str(database))} NEW" in ended.stdout
    assert "mandrake-sessions restore BACKUP FILE" in ended.stdout


def test_damage_is_placed_where_sqlite_stops(run: Run, database: Path) -> None:
    """It opens and lists; SQLite's check of all pages ends with an error that names nothing."""
    raw = apsw.Connection(str(database))
    ((page,),) = raw.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'turns'")
    raw.close()
    overwrite(database, 4096 * (page - 1), b"\xff" * 4096)

    ended = run("doctor", database, "--json")

    assert ended.code == 5
    assert bad(ended) == dict.fromkeys(("pages", "references", "texts", "streaming"), "failed")
    assert "turns" in checks(ended)["pages"]["detail"]
    assert "turns" in checks(ended)["texts"]["detail"]


def test_advice_can_be_pasted(run: Run, database: Path) -> None:
    there = database.with_name("with spaces & more").joinpath("db.sqlite")
    there.parent.mkdir()
    database.rename(there)
    there.chmod(0o640)

    ended = run("doctor", there)

    assert (ended.code, f"chmod 600 '{there}'" in ended.stdout) == (0, True)
    assert "KiB, mode" not in ended.stdout


def test_a_missing_file_is_said_to_be_missing(run: Run, database: Path) -> None:
    database.unlink()

    ended = run("doctor", database, "--json")

    assert ended.code == 3
    assert bad(ended) == {"file": "failed"}
    assert not database.exists()


def test_the_wal_of_a_crash_is_read_and_kept(
    run: Run, path: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(
        "from mandrake_sessions import SessionManager\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "response = sessions.create_round(sessions.create_session('A').id, 'Q').response\n"
        "turn = sessions.stream_turn(response.id)\n"
        "send('streaming')\nreceive()",
        path,
    )
    child.receive()
    in_use = run("doctor", path, "--json")
    child.process.kill()
    child.process.wait()
    before = files(path)

    ended = run("doctor", path, "--json")

    assert (in_use.code, bad(in_use)) == (0, {})
    assert str(child.process.pid) in checks(in_use)["locks"]["detail"]
    assert "1 living" in checks(in_use)["owners"]["detail"]
    assert (ended.code, bad(ended)) == (0, {"streaming": "degraded"})
    assert "left by a program" in checks(ended)["log"]["detail"]
    assert "1 dead" in checks(ended)["owners"]["detail"]
    assert files(path) == before


def test_the_process_that_holds_the_write_lock_is_named(
    run: Run, database: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(
        "import apsw\n"
        "raw = apsw.Connection(sys.argv[1])\nraw.execute('BEGIN IMMEDIATE')\n"
        "send('held')\nreceive()\nraw.execute('ROLLBACK')\nraw.close()",
        database,
    )
    child.receive()

    ended = run("doctor", database, "--json")

    child.send()
    child.finish()
    assert (ended.code, bad(ended)) == (0, {"locks": "degraded"})
    detail = checks(ended)["locks"]["detail"]
    assert detail.startswith(f"process {child.process.pid} (")
    assert "holds the write lock" in detail


BUSY = """
import time
from mandrake_sessions import *
options = PoolOptions(database=DatabaseOptions(durability=Durability.FAST, checkpoint_frames=20))
sessions = SessionManager(sys.argv[1], pool=ConnectionPool(options)).init()
send("writing")
for number in range(10**9):
    made = sessions.create_session("more", description="x" * 9000)
    if number % 3:
        sessions.delete_session(made.id)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("pause", [0.0, 0.002])
def test_a_file_that_is_being_written_is_not_taken_for_a_damaged_one(
    start_child: Callable[..., Any], database: Path, pause: float
) -> None:
    """Its log is another one by the time a frame of it is read, and its size another one too."""
    child = start_child(BUSY, database, pause)
    child.receive()
    began, looks, longest = monotonic(), 0, 0.0

    while monotonic() - began < 0.5 or looks < 5:
        before = monotonic()
        report = diagnose(database)
        longest = max(longest, monotonic() - before)
        looks += 1
        found = {each.name: each for each in report.checks}
        assert report.is_usable, [each for each in report.checks if each.status == "failed"]
        assert found["header"].status == "ok"
        assert found.keys() & {"size", "log"} == {"log"}
    # None of them waits for the writer, which never ends.
    assert longest < SOON


def execute(path: Path, sql: str) -> None:
    raw = apsw.Connection(str(path))
    raw.execute("PRAGMA ignore_check_constraints = ON")
    raw.execute(sql)
    raw.close()


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda p: overwrite(p, 0, b"SQLite"[::-1]), {"header": "failed"}),
        (lambda p: overwrite(p, 68, bytes(4)), {"header": "failed"}),
        (lambda p: os.truncate(p, 4096 * 6), {"size": "failed", "reading": "failed"}),
        (lambda p: p.chmod(0o644), {"file": "degraded"}),
        (
            lambda p: execute(p, "UPDATE alembic_version SET version_num = '9'"),
            {"schema": "failed"},
        ),
        (lambda p: execute(p, "DROP TABLE turns"), {"schema": "failed"}),
        (
            lambda p: execute(p, "UPDATE requests SET round_id = 'missing'"),
            {"references": "degraded"},
        ),
        (
            lambda p: execute(p, "UPDATE requests SET content = CAST(x'ff' AS TEXT)"),
            {"texts": "degraded"},
        ),
        (lambda p: Path(f"{p}.partial-{'0' * 16}").touch(), {"partial_files": "degraded"}),
        (lambda p: Path(f"{p}-wal.of-moved-file-1").touch(), {"set_aside": "degraded"}),
        (lambda p: Path(f"{p}-turnstile").mkdir(), {"turnstile": "degraded"}),
    ],
    ids=[
        *("magic", "application", "cut", "mode", "newer", "table", "orphans", "text"),
        *("partial", "aside", "turnstile"),
    ],
)
def test_each_fault_has_its_check(
    run: Run, database: Path, spoil: Callable[[Path], object], found: dict[str, str]
) -> None:
    Path(f"{database}-turnstile").unlink(missing_ok=True)
    spoil(database)

    ended = run("doctor", database, "--json")

    assert bad(ended) == found
    assert ended.code == (5 if "failed" in found.values() else 0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_path_that_is_no_regular_file_is_not_opened(run: Run, tmp_path: Path) -> None:
    """Opening a named pipe would wait without end for a process at its other end."""
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path / "pipe", tmp_path):
        ended = run("doctor", path, "--json")
        assert (ended.code, bad(ended)) == (5, {"file": "failed"})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("put", [os.mkfifo, lambda place: os.symlink("elsewhere", place)])
def test_a_sidecar_that_is_no_file_is_to_be_removed(
    run: Run, database: Path, suffix: str, put: Callable[[str], None]
) -> None:
    place = f"{database}{suffix}"
    put(place)

    ended = run("doctor", database, "--json")

    assert (ended.code, bad(ended)) == (5, {"reading": "failed"})
    assert checks(ended)["reading"]["advice"] == "Remove it."
    assert os.path.basename(place) in checks(ended)["reading"]["detail"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_restore_over_a_linked_sidecar_says_what_to_remove(
    run: Run, database: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.sqlite"
    assert run("backup", copy, "--database", database).code == 0
    Path(f"{database}-wal").symlink_to("elsewhere")

    ended = run("restore", copy, database, "--overwrite", "--json")

    error = ended.json()["error"]
    assert error["message"].startswith(f"{database.name}-wal is a link")
    assert "remove it" in error["message"]
    assert error["hint"] == ""
    assert run("doctor", database).code == 5


def test_a_header_that_states_too_much_takes_no_time(run: Run, database: Path) -> None:
    """Of 4,294,967,295 pages nearly all are missing; they are not counted one by one."""
    overwrite(database, 28, b"\xff" * 4)

    assert bad(run("doctor", database, "--json"))["size"] == "failed"


def test_an_emptied_file_with_a_log_is_no_new_database(run: Run, database: Path) -> None:
    raw = apsw.Connection(str(database))
    raw.wal_autocheckpoint(0)
    raw.execute("UPDATE sessions SET title = 'In the log'")
    log = Path(f"{database}-wal").read_bytes()
    raw.close()
    Path(f"{database}-wal").write_bytes(log)
    os.truncate(database, 0)

    ended = run("doctor", database, "--json")

    assert ended.code == 5
    assert bad(ended)["header"] == "failed"
    assert Path(f"{database}-wal").read_bytes() == log


def test_a_file_that_is_emptied_in_use_is_no_new_database_either(
    run: Run, path: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(
        "from mandrake_sessions import SessionManager\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "sessions.create_session('In the log')\n"
        "send('stored')\nreceive()",
        path,
    )
    child.receive()
    # It must not notice before the check, and give the file up.
    child.process.send_signal(signal.SIGSTOP)
    os.truncate(path, 0)

    ended = run("doctor", path, "--json")

    assert (ended.code, bad(ended)) == (5, {"header": "failed"})
    child.process.kill()
    child.process.wait()


def test_copies_from_before_a_migration_are_named(run: Run, database: Path) -> None:
    Path(f"{database}.before-0001").touch()
    Path(f"{database}.before-0001.partial-{'0' * 16}").touch()

    ended = run("doctor", database, "--json")

    assert bad(ended) == {"partial_files": "degraded"}
    assert f"{database.name}.before-0001" in checks(ended)["set_aside"]["detail"]


def test_the_doctor_can_be_called_from_python(database: Path) -> None:
    report = diagnose(database)

    assert (report.path, report.level, report.is_usable) == (database, HealthLevel.THOROUGH, True)
    assert diagnose(database, full=True).level is HealthLevel.FULL
    with pytest.raises(InvalidArgumentError):
        diagnose(database, full=1)  # type: ignore[arg-type]  # the point


# -- restore --------------------------------------------------------------------------------------


def test_a_backup_is_put_in_place(run: Run, database: Path, copy: Path) -> None:
    database.unlink()

    ended = run("restore", copy, database, "--json")

    assert ended.code == 0
    assert ended.json() == {
        "backup": str(copy),
        "database": str(database),
        "bytes": database.stat().st_size,
        "kept": [],
    }
    shown = run("sessions", "list", "--database", database)
    assert "Kept" in shown.stdout


def test_a_database_is_replaced_only_on_request(run: Run, database: Path, copy: Path) -> None:
    refused = run("restore", copy, database)
    replaced = run("restore", copy, database, "--overwrite")

    assert refused.code == 6
    assert "--overwrite" in refused.require_one_line()
    assert replaced.code == 0


def test_a_database_in_use_is_not_replaced(
    run: Run, database: Path, copy: Path, pool: ConnectionPool
) -> None:
    with pool.acquire(database):
        ended = run("restore", copy, database, "--overwrite", "--timeout", "0.05", "--json")

    assert ended.code == 4
    assert ended.error()["type"] == "DatabaseBusyError"
    assert "busy_timeout" not in ended.error()["message"]
    assert "Stop the program" in ended.error()["hint"]


def test_the_output_names_the_new_path_of_the_damaged_file(
    run: Run, database: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(database.parent)
    overwrite(database, 4096 * 4, os.urandom(4096))
    answer = run("restore", copy.name, database.name, "--overwrite", "--json").json()
    overwrite(database, 4096 * 4, os.urandom(4096))
    shown = run("restore", copy.name, database.name, "--overwrite").stdout

    (kept,) = answer["kept"]
    assert Path(kept).name.startswith(f"{database.name}.damaged-")
    assert (answer["backup"], answer["database"]) == (str(copy), str(database))
    (kept,) = files_kept(database) - {kept}
    assert kept in shown
    assert str(copy) in shown


def files_kept(database: Path) -> set[str]:
    return {str(each) for each in database.parent.glob(f"{database.name}.damaged-*")}


def test_a_database_is_not_restored_onto_itself(run: Run, database: Path) -> None:
    ended = run("restore", database, database, "--overwrite")

    assert ended.code == 1
    assert "is the database itself" in ended.require_one_line()


def test_a_damaged_database_gives_no_backup_and_a_hint(run: Run, database: Path) -> None:
    overwrite(database, 4096 * 4, os.urandom(4096))

    ended = run("backup", database.with_name("copy.sqlite"), "--database", database)

    assert ended.code == 5
    assert "doctor" in ended.stderr
    assert "salvage" in ended.require_one_line()


@pytest.mark.parametrize("command", ["restore", "salvage"])
def test_hints_speak_of_the_command_that_failed(run: Run, tmp_path: Path, command: str) -> None:
    notes = tmp_path / "notes.py"
    notes.write_text("print('no database')\n" * 1000)

    missing = run(command, tmp_path / "nothing", tmp_path / "new.sqlite")
    foreign = run(command, notes, tmp_path / "new.sqlite")

    assert (missing.code, foreign.code) == (3, 5)
    assert "--workspace" not in missing.require_one_line()
    assert "Check the path" in missing.stderr
    assert "everything else" not in foreign.require_one_line()
    assert not (tmp_path / "new.sqlite").exists()


def test_a_file_that_is_no_backup_is_refused(run: Run, database: Path, copy: Path) -> None:
    overwrite(copy, 4096 * 4, os.urandom(4096))
    damaged = run("restore", copy, database, "--overwrite")
    missing = run("restore", copy.with_name("nothing"), database, "--overwrite")

    assert damaged.code == 5
    assert "damaged" in damaged.require_one_line()
    assert missing.code == 3


# -- salvage --------------------------------------------------------------------------------------


def test_salvage_keeps_the_readable_rows_and_reports_the_lost_ones(
    run: Run, database: Path, tmp_path: Path
) -> None:
    overwrite(database, 0, bytes(4096))
    new = tmp_path / "new.sqlite"

    ended = run("salvage", database, new)

    assert ended.code == 0
    assert "rows that were deleted before may be back" in ended.stdout
    assert "Each row is counted once" in ended.stdout
    assert "Kept" in run("sessions", "list", "--database", new).stdout


def test_salvage_prints_json_for_machines(run: Run, database: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.sqlite"

    report = run("salvage", database, new, "--json").json()
    again = run("salvage", database, new, "--json")

    assert report["is_complete"]
    kept = {each["table"]: each["kept"] for each in report["tables"]}
    assert (kept["sessions"], kept["rounds"], kept["turns"]) == (1, 1, 1)
    assert again.code == 6
