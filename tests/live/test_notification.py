"""How another process's write is noticed: the system's notification, and polling without it."""

import errno
import os
import sys
import threading

import pytest
from kits.waiting import PATIENCE, until
from watching_kit import Watching

from mandrake_sessions.database.files.notification import Inotify, Notifier
from mandrake_sessions.database.open_file import others
from mandrake_sessions.live.watching.backoff import Backoff

needs_inotify = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="inotify is Linux's"
)
WRITER = """
from mandrake_sessions import SessionManager
with SessionManager(sys.argv[1]) as sessions:
    send("open")
    while receive():
        sessions.create_turn(sys.argv[2])
"""


def no_inotify():
    raise OSError(errno.EMFILE, "no watch left")


@pytest.fixture(params=[pytest.param(Inotify, marks=needs_inotify), no_inotify])
def notifier(request):
    notifier = Notifier(request.param)
    yield notifier
    until(lambda: notifier._thread is None)


def make_files(tmp_path, count):
    paths = [tmp_path / f"{number}.sqlite" for number in range(count)]
    for path in paths:
        path.touch()
        path.with_name(path.name + "-wal").touch()
    return paths


def append(path):
    with path.with_name(path.name + "-wal").open("ab") as log:
        log.write(b"frame")


def test_only_followers_of_the_written_file_are_notified(notifier, tmp_path):
    paths = make_files(tmp_path, 3)
    changed = [threading.Event() for _ in paths]
    for path, event in zip(paths, changed, strict=True):
        notifier.watch(path, path, event.set)
    append(paths[1])
    assert changed[1].wait(PATIENCE)
    assert not changed[0].is_set()
    assert not changed[2].is_set()
    for path in paths:
        notifier.forget(path)


def test_nothing_is_left_when_nothing_is_watched(notifier, tmp_path):
    (path,) = make_files(tmp_path, 1)
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for _ in range(3):
        changed = threading.Event()
        notifier.watch(path, path, changed.set)
        append(path)
        assert changed.wait(PATIENCE)
        notifier.forget(path)
        until(lambda: notifier._thread is None)
    if before:
        assert set(os.listdir("/proc/self/fd")) == before


def test_a_moved_database_is_reported(notifier, tmp_path):
    (path,) = make_files(tmp_path, 1)
    changed = threading.Event()
    notifier.watch(path, path, changed.set)
    path.rename(tmp_path / "elsewhere")
    assert changed.wait(PATIENCE)
    notifier.forget(path)


@needs_inotify
def test_a_wal_that_was_created_again_is_polled(tmp_path):
    notifier = Notifier()
    (path,) = make_files(tmp_path, 1)
    changed = threading.Event()
    notifier.watch(path, path, changed.set)
    log = path.with_name(path.name + "-wal")
    log.unlink()
    until(lambda: notifier.is_polling)
    assert changed.wait(PATIENCE)
    changed.clear()
    log.touch()
    append(path)
    assert changed.wait(PATIENCE)
    notifier.forget(path)
    until(lambda: notifier._thread is None)


@needs_inotify
def test_a_file_followed_twice_is_watched_until_the_last_follower_ends(tmp_path):
    notifier = Notifier()
    (path,) = make_files(tmp_path, 1)
    changed = threading.Event()
    notifier.watch("old", path, lambda: None)
    notifier.watch("new", path, changed.set)
    notifier.forget("old")
    append(path)
    assert changed.wait(PATIENCE)
    assert not notifier.is_polling
    notifier.forget("new")
    until(lambda: notifier._thread is None)


def test_changes_are_noticed_without_notification_too(
    sessions, response, path, start_child, monkeypatch
):
    polling = Notifier(no_inotify)
    monkeypatch.setattr(others, "notifier", polling)
    child = start_child(WRITER, path, response.id)
    child.receive()
    with Watching(sessions).response(response.id) as watch:
        assert polling.is_polling
        for index in range(3):
            child.send(1)
            assert watch.receive(PATIENCE).index == index
    child.send(None)
    child.finish()
    until(lambda: polling._thread is None)


def test_backoff_polls_soon_then_rarely_then_no_more():
    backoff = Backoff()
    assert backoff.due is None
    backoff.start(100.0)
    times: list[float] = []
    now = 100.0
    while backoff.due is not None:
        now = backoff.due
        times.append(now - 100.0)
        backoff.note_refresh(now, found=False)
    assert times[0] == 0.0
    assert times[1] == pytest.approx(0.001)
    assert 5.0 < times[-1] < 10.0
    backoff.start(200.0)
    backoff.note_refresh(200.0, found=False)
    backoff.note_refresh(200.001, found=False)
    backoff.note_refresh(200.003, found=True)
    assert backoff.due == pytest.approx(200.004)
    backoff.note_refresh(300.0, found=False)
    assert backoff.due is not None
