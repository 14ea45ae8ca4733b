"""Random damage to a real file: it opens, or a typed error says why not; nothing crashes or hangs.

And what can be read of it is read: ``salvage`` never fails, and its result is a sound database.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import pytest
from corruption_kit import TABLES, build, contents, damage

from mandrake_sessions import NewTurn, SessionManager, TurnStatus, diagnose, salvage

PROJECT = Path(__file__).parents[2]
KIT = Path(__file__).parent / "corruption_kit.py"
SECONDS = 60
"""For a batch; a case takes a third of a second."""

# What a damaged file may answer. Anything else would send its reader the wrong way.
RIGHT = {
    "CorruptDatabaseError",
    "NotADatabaseError",
    "UnrecognizedDatabaseError",
    "SchemaTooNewError",
    "MigrationError",
    "DatabaseOpenError",
    "DatabaseIOError",
    "DatabaseMissingError",
    # The mark in its first page is damaged: its log looks like that of another database.
    "StaleLogError",
}


def run_batch(folder: Path, numbers: list[int]) -> list[dict[str, Any]]:
    """Look at some damages in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(KIT), str(folder), *map(str, numbers)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    last = lines[-1]["number"] if lines else "none"
    assert done.returncode == 0, f"case {last} ended the process: {done.stderr[-3000:]}"
    return [line for line in lines if "kind" in line]


def in_batches(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[at : at + size] for at in range(0, len(numbers), size)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A database of 22 talks with its log, and what a reader of both sees, in one file."""
    build(tmp_path)
    work = tmp_path / "merged"
    work.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"db.sqlite{suffix}", work / f"db.sqlite{suffix}")
    raw = apsw.Connection(str(work / "db.sqlite"))
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()
    (work / "db.sqlite").rename(tmp_path / "sound.sqlite")
    return tmp_path


def test_salvage_of_a_sound_file_keeps_everything(folder: Path, tmp_path: Path) -> None:
    report = salvage(folder / "db.sqlite", tmp_path / "new.sqlite")

    assert report.is_complete, report
    assert contents(tmp_path / "new.sqlite") == contents(folder / "sound.sqlite")


@pytest.mark.timeout(600)
def test_random_damage_is_survived_or_named(folder: Path, campaign: Any) -> None:
    count = campaign.pick(10, 200, 600)
    batches = in_batches(list(range(count)), campaign.pick(5, 20, 20))
    with ThreadPoolExecutor(2) as executor:
        found = [
            each
            for batch in executor.map(lambda b: run_batch(folder, b), batches)
            for each in batch
        ]

    sound = {table: len(rows) for table, rows in contents(folder / "sound.sqlite").items()}
    outcomes = Counter(f"{each['outcome']} {each['detail']}".strip() for each in found)
    print(
        f"\n{len(found)} damages, doctor: {dict(Counter(each['doctor'] for each in found))}"
    )  # a result
    for outcome, times in outcomes.most_common():
        print(f"  {times:4}  {outcome}")  # a result
    saved = {table: sum(each["saved"][table] for each in found) for table in TABLES}
    for table in TABLES:
        print(
            f"  {table}: {saved[table] / (sound[table] * len(found)):.2%} of {sound[table]}"
        )  # a result

    assert len(found) == count
    assert [each for each in found if each["outcome"].startswith("raised")] == []
    assert [each for each in found if each["detail"] and each["detail"] not in RIGHT] == []
    # The doctor names each part that does not work.
    unseen = [each for each in found if each["outcome"] != "works" and not each["failed"]]
    assert unseen == [], unseen
    assert [each for each in found if not each["is_untouched"]] == []
    assert all(saved[table] >= 0.9 * sound[table] * len(found) for table in TABLES)


def test_the_kit_damages_what_it_says(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    sound = (folder / "db.sqlite").read_bytes()

    assert damage(folder / "db.sqlite", place, 2) == "zero page of the file"

    damaged = (place / "db.sqlite").read_bytes()
    assert len(damaged) == len(sound)
    assert (
        sum(damaged[at : at + 4096] != sound[at : at + 4096] for at in range(0, len(sound), 4096))
        == 1
    )


def test_a_damaged_text_is_no_damage_to_the_file(sessions: SessionManager, path: Path) -> None:
    """SQLite's own checks do not look at what a text holds; the doctor does."""
    session = sessions.create_session("A talk")
    sessions.record_round(session.id, "Hello?", [NewTurn(content="a secret")])
    other = apsw.Connection(str(path))
    other.execute("UPDATE turns SET content = CAST(content || x'ff' AS TEXT)")
    other.close()

    (exchange,) = sessions.render_session_history(session.id).rounds

    assert exchange.turns[0].content == "a secret\ufffd"
    assert sessions.create_session("More").title == "More"
    assert [each.name for each in diagnose(path).checks if each.status != "ok"] == ["texts"]


def test_a_damaged_status_counts_as_interrupted(sessions: SessionManager, path: Path) -> None:
    session = sessions.create_session("A talk")
    turn = sessions.record_round(session.id, "Hello?", [NewTurn(content="Yes.")]).turns[0]
    other = apsw.Connection(str(path))
    other.execute("PRAGMA ignore_check_constraints = ON")
    other.execute("UPDATE turns SET status = 'dompleted'")
    other.close()

    assert sessions.get_turn(turn.id).status is TurnStatus.INTERRUPTED
    assert sessions.create_session("More").title == "More"
