"""The imported rows, their order, and a second run, which adds nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import apsw
import pytest
from origin_kit import SECONDS, WRITTEN, Origin, everything_in

from mandrake_sessions import (
    ConnectionPool,
    InvalidArgumentError,
    NotInitializedError,
    SessionManager,
    TurnStatus,
)
from mandrake_sessions.importers import ImportProgress, import_mandrake, mandrake, placement

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "origin"


def names(sessions: SessionManager, session_id: str) -> list[tuple[int, str]]:
    return [
        (round_.index, round_.id) for round_ in sessions.render_session_history(session_id).rounds
    ]


def contents(sessions: SessionManager) -> list[Any]:
    return [
        sessions.render_session_history(session.id)
        for session in sorted(sessions.list_sessions(), key=lambda session: session.id)
    ]


def two_sessions() -> Origin:
    origin = Origin()
    for session in ("a", "b"):
        origin.session(session)
    for number in range(3):
        origin.exchange("b", f"b{2 - number}", turns=2)
        origin.exchange("a", f"a{number}")
    return origin


def with_orphans() -> Origin:
    """Two sessions, of which the second was deleted the way the origin does it."""
    origin = two_sessions()
    origin.run("PRAGMA foreign_keys=ON")
    origin.run("DELETE FROM sessions WHERE id = 'b'")
    return origin


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real databases are not at {REAL}")
@pytest.mark.parametrize(
    ("name", "found", "orphans"),
    [
        ("system", (4, 46, 95), (12, 12, 24)),
        ("workspace", (22, 176, 344), (20, 20, 38)),
    ],
)
def test_the_real_databases_are_imported(
    name: str,
    found: tuple[int, int, int],
    orphans: tuple[int, int, int],
    source: Path,
    target: SessionManager,
) -> None:
    real = REAL / f"{name}.sqlite"
    before = everything_in(REAL)

    report = import_mandrake(real, target)

    assert everything_in(REAL) == before
    assert (report.sessions, report.rounds, report.turns) == found
    assert (report.requests, report.responses) == (report.rounds, report.rounds)
    assert (report.orphaned_requests, report.orphaned_responses, report.orphaned_turns) == orphans
    assert (report.orphaned_rounds, report.orphans_recovered) == (0, 0)
    assert report.turns_interrupted == 1
    assert report.times_converted > 0
    assert report.times_repaired == 0
    assert target.count_sessions() == found[0]

    shutil.copyfile(real, source)
    source.chmod(0o600)
    connection = apsw.Connection(str(source))
    turns = 0
    for session in target.list_sessions():
        rounds = target.render_session_history(session.id).rounds
        in_order = connection.execute(
            "SELECT r.id, q.id, q.content, r.responseId FROM rounds r JOIN requests q"
            " ON q.id = r.requestId WHERE sessionId = ? ORDER BY r.rowid",
            (session.id,),
        ).fetchall()
        assert [
            (each.id, each.request.id, each.request.content, each.response.id) for each in rounds
        ] == in_order
        assert [each.index for each in rounds] == list(range(len(rounds)))
        for each in rounds:
            turns += len(each.turns)
            assert [
                (turn.id, turn.index, turn.content, turn.raw_response, turn.input_tokens)
                for turn in each.turns
            ] == connection.execute(
                'SELECT id, "index", content, rawResponse, inputTokens FROM turns'
                ' WHERE responseId = ? ORDER BY "index"',
                (each.response.id,),
            ).fetchall()
            assert all(turn.status.is_finished for turn in each.turns)
    connection.close()
    assert turns == found[2]

    stored = contents(target)
    again = import_mandrake(real, target)
    assert (again.sessions, again.rounds, again.turns, again.times_converted) == (0, 0, 0, 0)
    assert (again.sessions_already_there, again.rounds_already_there) == found[:2]
    assert contents(target) == stored

    recovered = import_mandrake(real, target, recover_orphans=True)
    assert recovered.rounds == 0
    assert recovered.rounds_recovered == orphans[0]
    assert recovered.orphans_recovered == sum(orphans) == recovered.orphans_found


def test_rounds_come_in_the_order_of_insertion(source: Path, target: SessionManager) -> None:
    report = import_mandrake(two_sessions().write(source), target)
    assert names(target, "a") == [(0, "a0"), (1, "a1"), (2, "a2")]
    assert names(target, "b") == [(0, "b2"), (1, "b1"), (2, "b0")]
    assert (report.sessions, report.rounds, report.requests, report.responses) == (2, 6, 6, 6)
    assert report.turns == 9
    assert report.orphans_found == 0


def test_ids_contents_and_times_arrive_as_they_were(source: Path, target: SessionManager) -> None:
    origin = Origin()
    origin.session("s", title="Ünïcode 🚀", description="d", metadata='{"branch":"main"}')
    origin.exchange("s", "r")
    import_mandrake(origin.write(source), target)
    session = target.get_session("s")
    assert (session.title, session.description) == ("Ünïcode 🚀", "d")
    assert session.metadata == {"branch": "main"}
    assert (session.next_round_index, session.created_us) == (1, SECONDS * 1_000_000)
    (exchange,) = target.render_session_history("s").rounds
    assert exchange.request.id == "r-request"
    assert exchange.request.content == "ask r"
    assert exchange.response.id == "r-response"
    (turn,) = exchange.turns
    assert (turn.id, turn.content, turn.raw_response) == ("r-turn-0", "answer r 0", "raw r 0")
    assert (turn.status, turn.tool_calls, turn.model) == (TurnStatus.COMPLETED, (), None)
    assert (turn.current_tokens, turn.expected_tokens) == (3, 400)
    assert (turn.cache_read_tokens, turn.cache_write_tokens) == (0, None)
    assert (turn.input_cost, turn.output_cost) == (0.25, 0.5)
    assert turn.created_us == turn.stream_started_us == SECONDS * 1_000_000
    assert turn.updated_us == SECONDS * 1_000_000 + 18_000
    assert target.create_turn("r-response").index == 1
    assert target.create_round("s", "next").index == 1


def test_a_second_run_adds_nothing(source: Path, target: SessionManager) -> None:
    with_orphans().write(source)
    first = import_mandrake(source, target, recover_orphans=True)
    stored = contents(target)
    second = import_mandrake(source, target, recover_orphans=True)
    assert contents(target) == stored
    assert (second.sessions_already_there, second.rounds_already_there) == (1, 3)
    assert second.recovery_session_id == first.recovery_session_id
    assert (second.orphans_recovered, second.rounds_recovered) == (0, 0)
    assert second.times_converted == 0


def test_a_run_that_was_interrupted_between_sessions_is_completed(
    source: Path, target: SessionManager
) -> None:
    two_sessions().write(source)

    def stop(progress: ImportProgress) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        import_mandrake(source, target, progress=stop)
    assert target.count_sessions() == 1
    report = import_mandrake(source, target)
    assert (report.sessions, report.sessions_already_there) == (1, 1)
    assert [len(names(target, session)) for session in "ab"] == [3, 3]


def test_a_run_that_was_interrupted_inside_a_session_goes_on_there(
    source: Path, target: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Origin()
    origin.session("s")
    for number in range(11):
        origin.exchange("s", f"r{number:02}")
    origin.write(source)
    monkeypatch.setattr(mandrake, "CHUNK_ROUNDS", 4)
    place, calls = placement.place_rounds, []

    def fail_at_the_third(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise InterruptedError
        return place(*args, **kwargs)

    monkeypatch.setattr(mandrake, "place_rounds", fail_at_the_third)
    with pytest.raises(InterruptedError):
        import_mandrake(source, target)
    assert len(names(target, "s")) == 8
    report = import_mandrake(source, target)
    assert (report.rounds, report.rounds_already_there, report.rounds_appended) == (3, 8, 0)
    assert names(target, "s") == [(number, f"r{number:02}") for number in range(11)]


def test_a_session_that_grew_here_keeps_its_rounds_and_gets_the_others_behind(
    source: Path, target: SessionManager
) -> None:
    origin = Origin()
    origin.session("s", title="theirs")
    origin.exchange("s", "r0")
    import_mandrake(origin.write(source), target)
    target.update_session("s", title="ours")
    target.update_request("r0-request", content="ours")
    own = target.create_round("s", "asked here")
    gap = target.create_round("s", "deleted here")
    target.delete_round(gap.id)

    source.unlink()
    for number in (1, 2, 3):
        origin.exchange("s", f"r{number}")
    report = import_mandrake(origin.write(source), target)

    assert names(target, "s") == [(0, "r0"), (1, own.id), (3, "r1"), (4, "r2"), (5, "r3")]
    assert target.get_session("s").title == "ours"
    assert target.get_request("r0-request").content == "ours"
    assert (report.sessions_already_there, report.rounds_already_there) == (1, 1)
    assert (report.rounds, report.rounds_appended) == (3, 3)


def test_a_run_that_goes_on_behind_moved_rounds_keeps_their_order(
    source: Path, target: SessionManager
) -> None:
    origin = Origin()
    origin.session("s")
    origin.exchange("s", "r0")
    import_mandrake(origin.write(source), target)
    own = target.create_round("s", "asked here")
    gap = target.create_round("s", "deleted here")
    for number in (1, 2):
        source.unlink()
        origin.exchange("s", f"r{number}")
        import_mandrake(origin.write(source), target)
        target.delete_round(gap.id, missing_ok=True)
    assert names(target, "s") == [(0, "r0"), (1, own.id), (3, "r1"), (4, "r2")]


def test_a_round_deleted_here_comes_back_to_its_place(source: Path, target: SessionManager) -> None:
    two_sessions().write(source)
    import_mandrake(source, target)
    target.delete_round("a1")
    report = import_mandrake(source, target)
    assert names(target, "a") == [(0, "a0"), (1, "a1"), (2, "a2")]
    assert (report.rounds, report.rounds_appended) == (1, 0)


def test_a_session_without_rounds_is_imported(source: Path, target: SessionManager) -> None:
    origin = Origin()
    origin.session("empty")
    report = import_mandrake(origin.write(source), target)
    assert (report.sessions, report.rounds) == (1, 0)
    assert target.get_session("empty").next_round_index == 0


def test_progress_is_reported_after_each_session(source: Path, target: SessionManager) -> None:
    with_orphans().write(source)
    reports: list[ImportProgress] = []
    report = import_mandrake(source, target, recover_orphans=True, progress=reports.append)
    assert report.recovery_session_id is not None
    assert reports == [
        ImportProgress(1, 2, "a"),
        ImportProgress(2, 2, report.recovery_session_id),
    ]


def test_orphans_are_reported_and_left_out_by_default(source: Path, target: SessionManager) -> None:
    report = import_mandrake(with_orphans().write(source), target)
    assert (report.orphaned_requests, report.orphaned_responses, report.orphaned_turns) == (3, 3, 6)
    assert (report.orphaned_rounds, report.orphans_found) == (0, 12)
    assert (report.orphans_recovered, report.recovery_session_id) == (0, None)
    assert (report.sessions, report.rounds, report.turns) == (1, 3, 3)
    assert target.count_sessions() == 1


def test_orphans_are_recovered_into_a_session_of_their_own(
    source: Path, target: SessionManager
) -> None:
    report = import_mandrake(with_orphans().write(source), target, recover_orphans=True)
    assert (report.sessions, report.rounds, report.turns) == (1, 3, 3)
    assert (report.orphans_recovered, report.rounds_recovered) == (12, 3)
    assert report.recovery_session_id is not None
    history = target.render_session_history(report.recovery_session_id)
    assert history.session.title == "Recovered from origin.sqlite"
    assert history.session.metadata == {"recovered_orphans": True, "source": "origin.sqlite"}
    assert [
        (each.index, each.request.id, each.response.id, [turn.id for turn in each.turns])
        for each in history.rounds
    ] == [
        (index, f"{name}-request", f"{name}-response", [f"{name}-turn-0", f"{name}-turn-1"])
        for index, name in enumerate(("b2", "b1", "b0"))
    ]


def test_the_same_source_under_another_name_is_recovered_once(
    source: Path, target: SessionManager
) -> None:
    with_orphans().write(source)
    first = import_mandrake(source, target, recover_orphans=True)
    second = import_mandrake(
        source.rename(source.with_name("moved.sqlite")), target, recover_orphans=True
    )
    assert second.recovery_session_id == first.recovery_session_id
    assert second.rounds_recovered == 0


def test_rows_imported_before_their_session_was_deleted_are_not_recovered_again(
    source: Path, target: SessionManager
) -> None:
    import_mandrake(two_sessions().write(source), target)
    source.unlink()
    origin = with_orphans()
    origin.session("c")
    origin.exchange("c", "late")
    origin.run("DELETE FROM sessions WHERE id = 'c'")
    report = import_mandrake(origin.write(source), target, recover_orphans=True)
    assert (report.orphaned_requests, report.rounds_recovered) == (4, 1)
    assert report.recovery_session_id is not None
    (only,) = target.render_session_history(report.recovery_session_id).rounds
    assert only.request.content == "ask late"
    assert target.render_session_history("b").rounds[0].id == "b2"


def test_rounds_whose_session_is_gone_are_used_for_the_recovery(
    source: Path, target: SessionManager
) -> None:
    origin = two_sessions()
    origin.run("DELETE FROM sessions WHERE id = 'b'")  # foreign keys are off: no cascade
    report = import_mandrake(origin.write(source), target, recover_orphans=True)
    assert (report.orphaned_rounds, report.orphaned_requests, report.orphaned_turns) == (3, 3, 6)
    assert (report.rounds_recovered, report.orphans_recovered) == (3, 15)
    assert report.recovery_session_id is not None
    assert names(target, report.recovery_session_id) == [(0, "b2"), (1, "b1"), (2, "b0")]


def test_orphans_that_cannot_be_paired_come_in_rounds_of_their_own(
    source: Path, target: SessionManager
) -> None:
    origin = Origin()
    origin.session("s")
    # A request too many: from here on requests and responses do not go side by side.
    origin.row("requests", id="alone", content="never answered")
    origin.exchange("s", "kept")
    origin.exchange("s", "lost")
    origin.run("DELETE FROM rounds WHERE id = 'lost'")
    origin.row("responses", id="unasked", createdAt=WRITTEN, updatedAt=WRITTEN)
    origin.turn("gone", 0)
    origin.turn("gone", 1)
    report = import_mandrake(origin.write(source), target, recover_orphans=True)
    assert (report.orphaned_requests, report.orphaned_responses, report.orphaned_turns) == (2, 2, 3)
    assert report.orphans_recovered == 7
    assert report.recovery_session_id is not None
    rounds = target.render_session_history(report.recovery_session_id).rounds
    assert [
        (each.request.content, [turn.id for turn in each.turns], each.response.id in named)
        for named in [("lost-response", "unasked", "gone-response")]
        for each in rounds
    ] == [
        ("never answered", [], False),
        ("", ["lost-turn-0"], True),
        ("ask lost", [], False),
        ("", [], True),
        ("", ["gone-turn-0", "gone-turn-1"], True),
    ]
    assert rounds[-1].created_us == SECONDS * 1_000_000
    again = import_mandrake(source, target, recover_orphans=True)
    assert again.rounds_recovered == 0


def test_orphans_of_different_times_are_not_paired(source: Path, target: SessionManager) -> None:
    origin = Origin()
    origin.row("requests", id="early", content="asked", createdAt=WRITTEN, updatedAt=WRITTEN)
    origin.row("responses", id="late", createdAt=SECONDS + 2, updatedAt=SECONDS + 2)
    report = import_mandrake(origin.write(source), target, recover_orphans=True)
    assert (report.sessions, report.rounds_recovered, report.orphans_recovered) == (0, 2, 2)


def test_orphans_that_are_all_there_already_make_no_session(
    source: Path, target: SessionManager
) -> None:
    import_mandrake(two_sessions().write(source), target)
    source.unlink()
    report = import_mandrake(with_orphans().write(source), target, recover_orphans=True)
    assert (report.orphaned_requests, report.rounds_recovered) == (3, 0)
    assert report.recovery_session_id is None
    assert target.count_sessions() == 2


def test_no_orphans_make_no_session(source: Path, target: SessionManager) -> None:
    report = import_mandrake(two_sessions().write(source), target, recover_orphans=True)
    assert report.recovery_session_id is None
    assert target.count_sessions() == 2


def test_the_target_must_be_open(source: Path, tmp_path: Path) -> None:
    two_sessions().write(source)
    with ConnectionPool() as pool, pytest.raises(NotInitializedError):
        import_mandrake(source, SessionManager(tmp_path / "db.sqlite", pool=pool))


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": 17},
        {"sessions": "the target"},
        {"recover_orphans": 1},
        {"progress": "shown"},
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_stored(
    source: Path, target: SessionManager, wrong: dict[str, Any]
) -> None:
    two_sessions().write(source)
    given: dict[str, Any] = {"source": source, "sessions": target, **wrong}
    with pytest.raises(InvalidArgumentError):
        import_mandrake(**given)
    assert target.count_sessions() == 0
