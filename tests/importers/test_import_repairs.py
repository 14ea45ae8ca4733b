"""What the origin wrote wrongly is repaired and counted, and never stops an import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from origin_kit import SECONDS, WRITTEN, Origin

from mandrake_sessions import SessionManager, ToolCall, Turn, TurnStatus
from mandrake_sessions.importers import ImportReport, import_mandrake

US = SECONDS * 1_000_000


@pytest.fixture
def origin() -> Origin:
    origin = Origin()
    origin.session("s")
    origin.exchange("s", "r", turns=0)
    return origin


def turns_of(
    origin: Origin, source: Path, target: SessionManager
) -> tuple[ImportReport, tuple[Turn, ...]]:
    report = import_mandrake(origin.write(source), target)
    return report, target.render_session_history("s").rounds[0].turns


def one_turn(
    origin: Origin, source: Path, target: SessionManager, **columns: Any
) -> tuple[ImportReport, Turn]:
    origin.turn("r", 0, **columns)
    report, (turn,) = turns_of(origin, source, target)
    return report, turn


@pytest.mark.parametrize(
    ("stored", "microseconds"),
    [
        (WRITTEN, US),
        ("2026-11-21T00:01:20Z", US),
        ("2026-11-21 01:01:20.5+01:00", US + 500_000),
        (SECONDS, US),
        (SECONDS + 0.5, US + 500_000),
        (SECONDS * 1000 + 7, US + 7_000),
        (US + 7, US + 7),
    ],
)
def test_times_are_read_in_every_unit(
    stored: Any, microseconds: int, origin: Origin, source: Path, target: SessionManager
) -> None:
    times = dict.fromkeys(("createdAt", "updatedAt", "streamStartTime", "streamEndTime"), stored)
    report, turn = one_turn(origin, source, target, **times)
    assert (turn.created_us, turn.updated_us) == (microseconds, microseconds)
    assert (turn.stream_started_us, turn.stream_ended_us) == (microseconds, microseconds)
    assert report.times_repaired == 0
    # The others are the session's, the round's, the request's and the response's.
    assert report.times_converted == 8 + 4 * (stored != US + 7)


@pytest.mark.parametrize(
    "unusable", ["", "yesterday", -1, 0, 5, 2**62, 1e300, b"\xff\x00", "0001-01-01 00:00:00"]
)
def test_unusable_times_take_those_of_what_they_belong_to(
    unusable: Any, origin: Origin, source: Path, target: SessionManager
) -> None:
    report, turn = one_turn(
        origin, source, target, createdAt=unusable, updatedAt=unusable, streamStartTime=unusable
    )
    assert (turn.created_us, turn.updated_us) == (US, US)
    assert (turn.stream_started_us, turn.stream_ended_us) == (US, US)
    assert report.times_repaired == 3


def test_a_session_without_any_usable_time_gets_that_of_the_file(
    source: Path, target: SessionManager
) -> None:
    origin = Origin()
    origin.session("s", createdAt=-1, updatedAt="")
    report = import_mandrake(origin.write(source), target)
    assert target.get_session("s").created_us == source.stat().st_mtime_ns // 1000
    assert report.times_repaired == 2


def test_nothing_changes_before_it_is_made_nor_ends_before_it_begins(
    origin: Origin, source: Path, target: SessionManager
) -> None:
    report, turn = one_turn(
        origin, source, target, updatedAt=SECONDS - 9, streamEndTime=SECONDS - 9
    )
    assert turn.updated_us == turn.created_us == US
    assert turn.stream_ended_us == turn.stream_started_us == US
    assert report.times_repaired == 2


def test_a_finished_turn_without_an_end_gets_its_last_change(
    origin: Origin, source: Path, target: SessionManager
) -> None:
    report, turn = one_turn(origin, source, target, streamEndTime=None)
    assert turn.stream_ended_us == US + 18_000
    assert report.times_repaired == 1


@pytest.mark.parametrize("ended", [None, SECONDS])
def test_a_turn_left_streaming_is_interrupted(
    ended: int | None, origin: Origin, source: Path, target: SessionManager
) -> None:
    report, turn = one_turn(origin, source, target, status="streaming", streamEndTime=ended)
    assert turn.status is TurnStatus.INTERRUPTED
    assert turn.stream_ended_us == US + 18_000
    assert (report.turns_interrupted, report.times_repaired) == (1, 0)


def test_an_unknown_status_is_an_error(
    origin: Origin, source: Path, target: SessionManager
) -> None:
    report, turn = one_turn(origin, source, target, status="paused")
    assert turn.status is TurnStatus.ERROR
    assert turn.error_message == "The origin's status 'paused' is unknown."
    assert report.statuses_replaced == 1


def test_turns_of_one_index_are_numbered_in_the_order_of_insertion(
    origin: Origin, source: Path, target: SessionManager
) -> None:
    for number in range(8):
        origin.turn("r", number, index=0)
    report, turns = turns_of(origin, source, target)
    assert [(turn.index, turn.id) for turn in turns] == [(n, f"r-turn-{n}") for n in range(8)]
    assert report.turns_renumbered == 7
    assert target.create_turn("r-response").index == 8


def test_unique_indexes_stay_and_unusable_ones_come_last(
    origin: Origin, source: Path, target: SessionManager
) -> None:
    origin.turn("r", 0, index=5)
    origin.turn("r", 1, index=2)
    origin.exchange("s", "q", turns=0)
    origin.turn("q", 0, index=-1)
    origin.turn("q", 1, index="x")
    origin.turn("q", 2, index=3)
    report = import_mandrake(origin.write(source), target)
    first, second = target.render_session_history("s").rounds
    assert [(turn.index, turn.id) for turn in first.turns] == [(2, "r-turn-1"), (5, "r-turn-0")]
    assert [turn.id for turn in second.turns] == ["q-turn-2", "q-turn-0", "q-turn-1"]
    assert [turn.index for turn in second.turns] == [0, 1, 2]
    assert report.turns_renumbered == 3


@pytest.mark.parametrize("stored", [-5, "many", 1.5, b"\x01", 2**63 - 1.0, "nan"])
def test_numbers_that_are_none_are_zero_or_null(
    stored: Any, origin: Origin, source: Path, target: SessionManager
) -> None:
    report, turn = one_turn(
        origin, source, target, inputTokens=stored, cacheReadTokens=stored, expectedTokens=None
    )
    assert (turn.input_tokens, turn.cache_read_tokens, turn.expected_tokens) == (0, None, None)
    assert report.numbers_repaired == 2


@pytest.mark.parametrize("stored", [-0.5, "free", float("inf"), b"\x01"])
def test_costs_that_are_none_are_zero(
    stored: Any, origin: Origin, source: Path, target: SessionManager
) -> None:
    report, turn = one_turn(origin, source, target, inputCost=stored)
    assert (turn.input_cost, turn.output_cost) == (0.0, 0.5)
    assert report.numbers_repaired == 1


@pytest.mark.parametrize(
    ("stored", "calls"),
    [
        ("", ()),
        ("{}", ()),
        ("[]", ()),
        (" null ", ()),
        ('{"call":null,"response":null}', ()),
        ('{"call":{"a":1},"response":[2]}', (ToolCall({"a": 1}, [2]),)),
        ('[{"call":{"a":1}},{"call":"b","response":2}]', (ToolCall({"a": 1}), ToolCall("b", 2))),
    ],
)
def test_tool_calls_of_every_form_are_read(
    stored: str,
    calls: tuple[ToolCall, ...],
    origin: Origin,
    source: Path,
    target: SessionManager,
) -> None:
    report, turn = one_turn(origin, source, target, toolCalls=stored)
    assert turn.tool_calls == calls
    assert report.json_kept_raw == 0


@pytest.mark.parametrize(
    "stored",
    [
        "not json",
        '"text"',
        "7",
        '{"name":"x"}',
        '[{"call":1},5]',
        '{"call":NaN}',
        '{"call":"\\ud800"}',
        '{"call":123456789012345678901234567890}',
        '{"call":' + "[" * 500 + "]" * 500 + "}",
        "[" * 100_000,
    ],
)
def test_tool_calls_that_are_none_keep_their_text(
    stored: str, origin: Origin, source: Path, target: SessionManager
) -> None:
    report, turn = one_turn(origin, source, target, toolCalls=stored)
    assert turn.tool_calls == (ToolCall(raw=stored),)
    assert report.json_kept_raw == 1


@pytest.mark.parametrize(
    ("stored", "metadata", "kept"),
    [
        ("", {}, 0),
        ("null", {}, 0),
        ('{"a":[1]}', {"a": [1]}, 0),
        ("[1]", {"origin_metadata": "[1]"}, 1),
        ("{oops", {"origin_metadata": "{oops"}, 1),
    ],
)
def test_metadata_that_is_no_object_keeps_its_text(
    stored: str, metadata: dict[str, Any], kept: int, source: Path, target: SessionManager
) -> None:
    origin = Origin()
    origin.session("s", metadata=stored)
    report = import_mandrake(origin.write(source), target)
    assert target.get_session("s").metadata == metadata
    assert report.json_kept_raw == kept


def test_texts_that_are_no_text_are_replaced(
    origin: Origin, source: Path, target: SessionManager
) -> None:
    origin.turn("r", 0, rawResponse=b"a \xff blob")
    origin.run("UPDATE turns SET content = CAST(x'61EDA08062' AS TEXT)")
    origin.run("UPDATE sessions SET title = CAST(x'FF41' AS TEXT), description = x'42'")
    report, (turn,) = turns_of(origin, source, target)
    assert turn.content == "a\ufffd\ufffd\ufffdb"
    assert turn.raw_response == "a \ufffd blob"
    session = target.get_session("s")
    assert (session.title, session.description) == ("\ufffdA", "B")
    assert report.texts_repaired == 4


def test_ids_that_cannot_be_stored_are_made_anew_the_same_each_time(
    source: Path, target: SessionManager
) -> None:
    origin = Origin()
    long = "x" * 300
    origin.session(long)
    origin.exchange(long, "r")
    origin.run("UPDATE requests SET id = CAST(x'FF' AS TEXT)")
    origin.run("UPDATE rounds SET requestId = CAST(x'FF' AS TEXT), id = 'a' || char(0)")
    origin.run("UPDATE turns SET id = ''")
    report = import_mandrake(origin.write(source), target)
    assert report.ids_replaced == 4
    (session,) = target.list_sessions()
    (exchange,) = target.render_session_history(session.id).rounds
    assert exchange.request.content == "ask r"
    assert [turn.content for turn in exchange.turns] == ["answer r 0"]
    again = import_mandrake(source, target)
    assert (again.rounds, again.rounds_already_there, again.ids_replaced) == (0, 1, 0)


def test_a_round_whose_parts_are_missing_gets_empty_ones(
    origin: Origin, source: Path, target: SessionManager
) -> None:
    origin.turn("r", 0)
    origin.run("DELETE FROM requests")
    origin.run("DELETE FROM responses")
    report = import_mandrake(origin.write(source), target)
    (exchange,) = target.render_session_history("s").rounds
    assert (exchange.request.id, exchange.request.content) == ("r-request", "")
    assert (exchange.response.id, len(exchange.turns)) == ("r-response", 1)
    assert (report.rounds, report.requests, report.responses, report.turns) == (1, 0, 0, 1)
    assert (report.parts_missing, report.orphans_found) == (2, 0)


def test_parts_that_two_rounds_share_are_stored_for_both(
    source: Path, target: SessionManager
) -> None:
    origin = Origin(unique=False)
    origin.session("s")
    origin.exchange("s", "r")
    origin.exchange("s", "q", requestId="r-request", responseId="r-response")
    report = import_mandrake(origin.write(source), target)
    first, second = target.render_session_history("s").rounds
    assert first.request.content == second.request.content == "ask r"
    assert first.turns[0].content == second.turns[0].content == "answer r 0"
    assert report.ids_replaced == 3
    assert import_mandrake(source, target).rounds_already_there == 2


def test_a_database_whose_texts_are_utf16_is_imported(source: Path, target: SessionManager) -> None:
    origin = Origin()
    origin.statements.insert(0, ("PRAGMA encoding='UTF-16le'", ()))
    origin.session("s", title="Ünïcode 🚀")
    origin.exchange("s", "r")
    report = import_mandrake(origin.write(source), target)
    assert target.get_session("s").title == "Ünïcode 🚀"
    assert (report.rounds, report.texts_repaired, report.ids_replaced) == (1, 0, 0)
