"""What the tests with interrupts share."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Let no finalizer of an earlier test run during this one, where the interrupt could hit it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def no_finalizers(no_collector: None) -> Iterator[None]:
    """``no_collector``, for tests that leave handles which no variable got."""
    with warnings.catch_warnings():
        # Such a handle warns when it is collected.
        warnings.simplefilter("ignore", ResourceWarning)
        yield
