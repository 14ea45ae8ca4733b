"""The meaning of a scenario's figures, in sentences made from the figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.results import NOT_OFFERED, Figures, Results, Scenario
from benchmarks.tables import headline, ratio_text, significant

_MEANINGS = {
    "append-one": "One agent stores its finished turns, one after the other.",
    "append-threads": "Eight agents of one process store their finished turns in one workspace.",
    "append-processes": "Several programs, or several workers of a server, share one workspace.",
    "append-files": "Eight agents have a workspace each, so an agent waits for the disk alone.",
    "append-tasks": "An asyncio host: the stores that have an async face, and ours from threads.",
    "read-whole": "A long conversation is shown, or sent to a model again.",
    "read-last": "A host shows the end of a long conversation.",
    "read-turn": "A host looks one answer up.",
    "read-sessions": "A host shows its list of conversations.",
    "open-close": "What each run of a command-line agent pays for its file.",
    "import": "What each start of a program pays before its first line runs.",
    "growth-append": "Whether an append gets slower in a file that has grown.",
    "growth-page": "Whether the list of conversations gets slower when there are many.",
    "workspaces": "A host with many workspaces, none of which stays open.",
    "stream-flat-out": "Tokens as fast as eight threads can write them.",
    "stream-age": "How much of a turn another process sees while it is written.",
    "update-token": "A host that stores each token by itself, without a TurnWriter.",
    "stream-readers": "Tokens at the pace of a model, during reads of a history.",
    "stream-foreign-lock": "Whether a slow neighbour holds up those who write tokens.",
    "watch": "How soon a watcher receives a change.",
    "watch-idle": "What watching costs while nothing happens.",
}


_CONTENDED = ("append-threads", "append-processes", "append-files", "append-tasks")
"""Where several write at once, so that one waits for another."""

_MOST_NAMED = 3


def meaning(scenario: Scenario) -> str:
    """Return the description of a scenario."""
    fitting = [each for each in _MEANINGS if scenario.id.startswith(each)]
    return _MEANINGS[max(fitting, key=len)] if fitting else ""


def is_ours(figures: Figures) -> bool:
    """Return whether these are figures of this library."""
    return "mandrake_sessions" in figures.store


def is_bare(figures: Figures) -> bool:
    """Return whether these are figures of bare APSW."""
    return figures.store.startswith("bare APSW")


def faster_by(scenario: Scenario, rival: Figures) -> float:
    """Return how many times as fast as this library a rival is: the median of the rounds."""
    ratio = statistics.median(rival.ratios)
    return 1 / max(ratio, 1e-9) if scenario.metric == "per_second" else ratio


def standing(scenario: Scenario) -> list[str]:
    """Return sentences on the rank of this library."""
    if scenario.id.startswith("growth"):
        return _growth(scenario)
    if scenario.id == "import":
        return [_imports(scenario)]
    rivals = [each for each in scenario.figures[1:] if each.ratios]
    if not rivals:
        return []
    found = [_against_bare(scenario, [each for each in rivals if is_bare(each)])]
    others = [each for each in rivals if not is_bare(each) and not is_ours(each)]
    found += [_against_others(scenario, others), _against_itself(scenario, rivals)]
    if scenario.id.startswith(_CONTENDED):
        found.append(_waiting(scenario, rivals))
    found.append(_trouble(scenario))
    return [each for each in found if each]


def _against_bare(scenario: Scenario, bare: Sequence[Figures]) -> str:
    if not bare:
        return ""
    best = max(bare, key=lambda each: faster_by(scenario, each))
    times = faster_by(scenario, best)
    which = best.store if len(bare) == 1 else f"{best.store}, the fastest of its {len(bare)} ways"
    if scenario.metric == "per_second":
        return f"Ours reaches {ratio_text(1 / times)} times the throughput of {which}."
    return f"Ours takes {ratio_text(times)} times as long as {which}."


def _against_others(scenario: Scenario, others: Sequence[Figures]) -> str:
    if not others:
        return ""
    ordered = sorted(others, key=lambda each: -faster_by(scenario, each))
    faster = [each for each in ordered if faster_by(scenario, each) > 1]
    best, last = ordered[0], ordered[-1]
    if len(others) == 1:
        if faster:
            return f"{best.store} is {_times_as_fast(scenario, best)} as ours."
        return f"Ours is {_as_fast(scenario, best)}."
    if faster:
        named = [f"{each.store} ({ratio_text(faster_by(scenario, each))} times)" for each in faster]
        verb = "is" if len(faster) == 1 else "are"
        return f"Of the {len(others)} others, faster than ours {verb} {_list(named)}."
    return (
        f"Ours is faster than the {len(others)} others: {_as_fast(scenario, best)},"
        f" {_as_fast(scenario, last)}."
    )


def _times_as_fast(scenario: Scenario, rival: Figures) -> str:
    return f"{ratio_text(faster_by(scenario, rival))} times as fast"


def _as_fast(scenario: Scenario, rival: Figures) -> str:
    return f"{ratio_text(1 / faster_by(scenario, rival))} times as fast as {rival.store}"


def _against_itself(scenario: Scenario, rivals: Sequence[Figures]) -> str:
    others = [each for each in rivals if is_ours(each)]
    if not others:
        return ""
    mine = scenario.figures[0].store
    times = ratio_text(1 / faster_by(scenario, others[0]))
    return f"{mine} reaches {times} times the throughput of {others[0].store}."


def _waiting(scenario: Scenario, rivals: Sequence[Figures]) -> str:
    mine = scenario.figures[0].longest
    ordered = sorted((each for each in rivals if not is_ours(each)), key=lambda each: each.longest)
    if not ordered:
        return ""
    shorter = [each for each in ordered if each.longest < mine]
    if not shorter:
        return (
            f"No store has a shorter longest wait than ours: {significant(mine)} ms, against "
            f"{significant(ordered[0].longest)} to {significant(ordered[-1].longest)} ms."
        )
    named = [f"{each.store} ({significant(each.longest)} ms)" for each in shorter[:_MOST_NAMED]]
    if len(shorter) > _MOST_NAMED:
        named.append(f"{len(shorter) - _MOST_NAMED} more")
    return f"Our longest wait is {significant(mine)} ms; shorter is that of {_list(named)}."


def _trouble(scenario: Scenario) -> str:
    found = [
        f"{each.store} raised {sum(each.errors.values()):,} errors ({_list(list(each.errors))})"
        for each in scenario.figures
        if each.errors
    ]
    found += [
        f"{each.store} had acknowledged {each.acknowledged - each.found_again:,} exchanges that"
        " were not found again"
        for each in scenario.figures
        if each.rounds and each.found_again < each.acknowledged
    ]
    found += [
        f"{each.store} dropped out ({each.failed})"
        for each in scenario.figures
        if each.failed and each.failed != NOT_OFFERED
    ]
    return f"{'; '.join(found)}." if found else ""


def _growth(scenario: Scenario) -> list[str]:
    sizes: dict[str, list[Figures]] = {}
    for each in scenario.figures:
        if each.rounds:
            sizes.setdefault(each.store.rpartition(", ")[0], []).append(each)
    found = []
    for store, (large, *smaller) in sizes.items():
        if smaller:
            small = smaller[-1]
            ratio = statistics.median(
                one / other for one, other in zip(large.rounds, small.rounds, strict=False)
            )
            of_large, of_small = (each.store.rpartition(", ")[2] for each in (large, small))
            found.append(
                f"{store}: {ratio_text(ratio)} times as long with {of_large} as with {of_small}."
            )
    return found


def _imports(scenario: Scenario) -> str:
    mine, others = scenario.figures[0], scenario.figures[1:]
    named = [
        f"{ratio_text(statistics.median(each.ratios))} times `{each.store}`"
        for each in others
        if each.ratios and each.store.startswith("import")
    ]
    alone = [each for each in others if not each.store.startswith("import")]
    without = f", {significant(alone[0].median)} of them the interpreter's own" if alone else ""
    return (
        f"`{mine.store}` takes {significant(mine.median)} ms{without}; all of it is {_list(named)}."
    )


def not_first(results: Results) -> list[str]:
    """Return a line for each scenario in which another store is faster than ours."""
    found = []
    for scenario in results.scenarios:
        if scenario.id.startswith(("growth", "import")):
            continue
        rivals = [each for each in scenario.figures[1:] if each.ratios and not is_ours(each)]
        ordered = sorted(rivals, key=lambda each: -faster_by(scenario, each))
        faster = [
            f"{each.store} ({_times_as_fast(scenario, each)})"
            for each in ordered
            if faster_by(scenario, each) > 1
        ]
        if faster:
            found.append(f"{headline(scenario)}: {_list(faster)}")
    return found


def _list(items: Sequence[str]) -> str:
    """Return items as in a sentence."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
