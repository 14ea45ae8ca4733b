"""Long names: what can be opened also streams, restores, is copied, checked and deleted."""

import os
import sys

import pytest

from mandrake_sessions import (
    DatabasePathError,
    HealthLevel,
    HealthStatus,
    SessionManager,
    TurnStatus,
    diagnose,
)
from mandrake_sessions.database.files import owner
from mandrake_sessions.database.sidecars import sidecar

LONGEST = 255 - len("-wal")


def name_of(length, letter="p"):
    return "-home-user-" + letter * (length - 11)


def left(folder):
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize("letter", ["p", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
@pytest.mark.parametrize("length", [150, 187, 188, 212, 213, 220, 243, 247, 248, 250, LONGEST])
def test_a_name_that_can_be_opened_can_do_everything(tmp_path, pool, length, letter):
    name = name_of(length) if letter == "p" else name_of(11 + (length - 11) // 2, letter)
    path = tmp_path / name
    sessions = SessionManager(path, pool=pool)
    with sessions:
        round_ = sessions.create_round(sessions.create_session("x").id, "q")
        with sessions.stream_turn(round_.response.id) as turn:
            turn.write("a")
        sessions.update_turn(
            sessions.create_turn(round_.response.id).id, status=TurnStatus.COMPLETED
        )
        assert sessions.health(HealthLevel.FULL).status is HealthStatus.OK
        sessions.backup(tmp_path / "backup")
        assert diagnose(path).is_usable
    sessions.restore(tmp_path / "backup", overwrite=True)
    with sessions:
        assert sessions.count_sessions() == 1
        sessions.backup(path.with_name("backup"), overwrite=True)
    assert diagnose(path, full=True).status is HealthStatus.OK
    sessions.delete()
    assert left(tmp_path) == ["backup"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such mode")
def test_a_long_name_opens_in_a_folder_that_others_may_write(tmp_path, pool):
    tmp_path.chmod(0o1777)
    path = tmp_path / name_of(LONGEST)

    with SessionManager(path, pool=pool) as sessions:
        sessions.create_session("x")

    with SessionManager(path, pool=pool) as sessions:
        assert sessions.count_sessions() == 1


@pytest.mark.parametrize("length", [LONGEST + 1, 255])
def test_a_name_without_room_for_its_log_is_refused_with_the_limit(tmp_path, pool, length):
    with pytest.raises(DatabasePathError) as caught:
        SessionManager(tmp_path / name_of(length), pool=pool).init()

    assert f"{length} bytes; the limit is {LONGEST}" in caught.value.message
    assert left(tmp_path) == []


def test_a_path_that_sqlite_would_not_open_is_refused_with_the_limit(tmp_path, pool):
    folder = tmp_path.joinpath(*["d" * 100] * 5)

    with pytest.raises(DatabasePathError) as caught:
        SessionManager(folder / "c.sqlite", pool=pool).init()

    assert "too long" in caught.value.message
    assert "456" in caught.value.message
    assert left(tmp_path) == []


def test_the_longest_path_can_do_everything(tmp_path, pool):
    parts = 456 - len(os.fsencode(tmp_path)) - len("/c.sqlite") - 1
    folder = tmp_path / ("d" * (parts // 2)) / ("e" * (parts - parts // 2 - 1))
    path = folder / "c.sqlite"
    assert len(os.fsencode(path)) == 456
    with SessionManager(path, pool=pool) as sessions:
        round_ = sessions.create_round(sessions.create_session("x").id, "q")
        sessions.stream_turn(round_.response.id).complete()
        assert sessions.health(HealthLevel.FULL).status is HealthStatus.OK
        sessions.backup(tmp_path / "backup")
    SessionManager(path, pool=pool).restore(tmp_path / "backup", overwrite=True)
    assert diagnose(path, full=True).status is HealthStatus.OK


def test_two_long_names_with_the_same_beginning_share_no_file(tmp_path):
    one, other = (tmp_path / f"{'p' * 240}{end}" for end in "ab")
    claims = [owner.claim(path) for path in (one, other)]

    assert list(owner.owners_of(one)) == [claims[0].id]
    assert list(owner.owners_of(other)) == [claims[1].id]
    for claim in claims:
        claim.release()
    assert left(tmp_path) == []


def test_a_short_name_keeps_its_files_names(tmp_path):
    assert sidecar(tmp_path / "db.sqlite", "-turnstile").name == "db.sqlite-turnstile"
