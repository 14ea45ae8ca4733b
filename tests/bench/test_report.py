"""The page that is made from the figures: what it says, and that it says nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report import BEGIN, END, page, write
from benchmarks.results import NOT_OFFERED, Figures, Results, Scenario, Verdict

OURS = "mandrake_sessions"


def figures(store: str, per_second: float, ratio: float = 0.0, longest: float = 5.0) -> Figures:
    return Figures(
        store=store,
        per_second=per_second,
        median=1000 / per_second,
        p99=2000 / per_second,
        longest=longest,
        worst=longest * 2,
        acknowledged=100,
        found_again=100,
        rounds=[per_second] * 3,
        ratios=[ratio] * 3 if ratio else [],
    )


def results(*stores: Figures, id: str = "append-threads-durable", **more: object) -> Results:
    scenario = Scenario(
        id=id,
        title="append, 8 threads",
        unit="appends",
        durability="durable",
        rounds=3,
        figures=[figures(OURS, 1000.0), *stores],
        **more,  # type: ignore[arg-type]
    )
    return Results(
        began="2026-01-02T03:04:05+00:00",
        mode="bench",
        machine={"machine": "a machine"},
        versions={"apsw": "3.0"},
        scenarios=[scenario],
    )


def text_of(results: Results) -> str:
    return " ".join(page(results, {}).split())


def test_the_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    measured = results(figures("agno SqliteDb", 500.0, 2.0), skipped={"a peer": "not installed"})
    measured.save(tmp_path / "new" / "results.json")
    assert Results.load(tmp_path / "new" / "results.json") == measured


def test_the_faster_store_is_named_with_its_ratio() -> None:
    text = text_of(results(figures("a quick peer", 1250.0, 0.8), figures("a slow one", 10.0, 100)))
    assert "- append, 8 threads, durable: a quick peer (1.25 times as fast)" in text
    assert "Of the 2 others, faster than ours is a quick peer (1.25 times)." in text
    assert "Ours is faster than" not in text


def test_first_is_said_only_where_it_is_so() -> None:
    text = text_of(results(figures("a peer", 500.0, 2.0), figures("a slow one", 10.0, 100.0)))
    assert "Nowhere in this run." in text
    assert "2.00 times as fast as a peer, 100 times as fast as a slow one." in text


def test_bare_apsw_counts_by_its_fastest_way() -> None:
    text = text_of(
        results(figures("bare APSW", 900.0, 1.11), figures("bare APSW, autocheckpoint", 2000, 0.5))
    )
    assert (
        "Ours reaches 0.50 times the throughput of bare APSW, autocheckpoint, the fastest" in text
    )


def test_the_store_with_the_shorter_wait_is_named() -> None:
    text = text_of(
        results(figures("a calm peer", 10.0, 100.0, 2.0), figures("b", 10.0, 100.0, 9.0))
    )
    assert "Our longest wait is 5.00 ms; shorter is that of a calm peer (2.00 ms)." in text


def test_lost_rows_errors_and_failed_stores_are_reported() -> None:
    lossy, failing = figures("a lossy peer", 10.0, 100.0), figures("a failing one", 10.0, 100.0)
    lossy.found_again = 97
    failing.errors = {"OperationalError": 4}
    gone = Figures(store="one that hangs", failed="it did not answer within 40 s")
    text = text_of(results(lossy, failing, gone))
    assert "a lossy peer had acknowledged 3 exchanges that were not found again" in text
    assert "97 of 100" in text
    assert "a failing one raised 4 errors (OperationalError)" in text
    assert "one that hangs dropped out (it did not answer within 40 s)" in text


def test_a_feature_or_peer_that_is_missing_is_named_without_figures() -> None:
    text = text_of(
        results(
            Figures(store="a small peer", failed=NOT_OFFERED),
            skipped={"an absent peer": "its distribution not installed"},
        )
    )
    assert "Not offered by a small peer." in text
    assert "an absent peer was not measured: its distribution not installed." in text
    assert "| a small peer |" not in text


def test_a_file_that_grows_is_held_against_its_smallest_size() -> None:
    large, small = (figures(f"{OURS}, {size} turns", 100.0) for size in ("100,000", "1,000"))
    large.rounds, small.rounds = [0.3, 0.4], [0.2, 0.2]
    bare = figures("bare APSW, autocheckpoint, 1,000 turns", 100.0)
    measured = results(id="growth-append")
    measured.scenarios[0].figures = [large, small, bare]
    text = text_of(measured)
    assert f"{OURS}: 1.75 times as long with 100,000 turns as with 1,000 turns." in text
    assert "Nowhere in this run." in text


def test_limits_are_counted_and_a_missed_one_stands_out() -> None:
    verdicts = [
        Verdict(limit="throughput at least 2 times a", value=2.5, lowest=2, highest=3, is_met=True),
        Verdict(limit="throughput at least 2 times b", value=1.5, is_met=False, note=" by 25.0%"),
        Verdict(limit="throughput at least 2 times c", note="it was not measured"),
    ]
    text = text_of(results(verdicts=verdicts))
    assert "1 of 3 limits were met and 1 missed; 1 had no store to be held against." in text
    assert "| throughput at least 2 times b | 1.50 | - | **missed** by 25.0% |" in text
    assert "| throughput at least 2 times a | 2.50 | 2.00 to 3.00 | met |" in text


def test_only_the_text_between_the_marks_is_written(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    target.write_text(f"# By hand\n\n{BEGIN}\n\nold figures\n\n{END}\n\nAlso by hand.\n", "utf-8")
    write(results(figures("a peer", 500.0, 2.0)), target, {})
    text = target.read_text("utf-8")
    assert text.startswith("# By hand\n")
    assert text.endswith("Also by hand.\n")
    assert "old figures" not in text
    once = text
    write(results(figures("a peer", 500.0, 2.0)), target, {})
    assert target.read_text("utf-8") == once


def test_a_page_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    target.write_text("# By hand\n", "utf-8")
    with pytest.raises(ValueError, match="lacks the marks"):
        write(results(), target, {})
    assert target.read_text("utf-8") == "# By hand\n"


def test_a_plot_keeps_its_text_and_knows_both_schemes(tmp_path: Path) -> None:
    plots = pytest.importorskip("benchmarks.plots", exc_type=ImportError)
    drawn = plots.draw_all(results(figures("a peer", 500.0, 2.0)), tmp_path)
    picture = drawn["append-threads-durable"].read_text("utf-8")
    assert "prefers-color-scheme:dark" in picture
    assert ">mandrake_sessions</text>" in picture
    assert ">1,000</text>" in picture
