"""Ids never collide: between threads, after a fork, and in a host that seeds its random numbers."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from mandrake_sessions import ids


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock of the ids: only their random parts differ then."""
    monkeypatch.setattr("mandrake_sessions.ids.time.time_ns", lambda: 1_700_000_000_000_000_000)


@pytest.mark.usefixtures("stopped_clock")
def test_ids_that_threads_make_at_once_differ(in_threads: Callable[..., Any]) -> None:
    made = in_threads(8, lambda _: [ids.new_id() for _ in range(2_000)])

    assert len({id for each in made for id in each}) == 16_000


@pytest.mark.usefixtures("stopped_clock")
def test_ids_of_a_forked_child_differ_from_those_of_its_parent() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, ids.new_id().encode())
        os._exit(0)
    of_the_parent = ids.new_id()
    os.waitpid(child, 0)
    os.close(writer)

    assert os.read(reader, 100).decode() != of_the_parent
    os.close(reader)


@pytest.mark.usefixtures("stopped_clock")
def test_ids_differ_in_a_host_that_seeds_its_random_numbers() -> None:
    made = []
    for _ in range(2):
        random.seed(7)
        made.append(ids.new_id())

    assert made[0] != made[1]
