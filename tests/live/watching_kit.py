"""Watching the database of a manager, and waiting for updates."""

import threading
from typing import Any

from kits.waiting import PATIENCE

from mandrake_sessions import SessionManager
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.live.hub import Hub
from mandrake_sessions.live.watching import subscription
from mandrake_sessions.live.watching.follower import Follower


class Watching:
    """The ways to watch that a manager offers, by its follower."""

    def __init__(self, sessions: SessionManager) -> None:
        self.sessions = sessions

    @property
    def hub(self) -> Hub:
        return Hub.of(file_handle(self.sessions.handle).file)

    @property
    def follower(self) -> Follower:
        return self.hub.follower

    def response(self, *args, **kwargs):
        return subscription.watch_response(self.follower, self.sessions, *args, **kwargs)

    def session(self, *args, **kwargs):
        return subscription.watch_session(self.follower, self.sessions, *args, **kwargs)

    def track(self, *args, **kwargs):
        return subscription.track_streaming_turns(self.follower, self.sessions, *args, **kwargs)

    def turn(self, *args, **kwargs):
        return subscription.add_turn_update_listener(self.follower, self.sessions, *args, **kwargs)


class Heard:
    """A listener that keeps its updates, for a test to wait for."""

    def __init__(self) -> None:
        self.updates: list[Any] = []
        self._changed = threading.Condition()

    def __call__(self, update) -> None:
        with self._changed:
            self.updates.append(update)
            self._changed.notify_all()

    def wait_for(self, is_there):
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(is_there, self.updates)), PATIENCE)
            return next(update for update in self.updates if is_there(update))


def take_until(watch, is_there):
    """Take updates until one is as wanted; return all of them."""
    updates: list[Any] = []
    while True:
        update = watch.receive(PATIENCE)
        assert update is not None, f"{updates} and then nothing"
        updates.append(update)
        if is_there(update):
            return updates


def nothing_more(watching, watch):
    """Return an update that comes after all so far; one that comes late would be missed.

    The follower has seen every commit of this process when one that it is asked for comes.
    """
    marker = watching.sessions.create_round(
        watching.sessions.create_session("marker").id, "marker"
    ).response.id
    turn = watching.sessions.create_turn(marker)
    with watching.response(marker) as other:
        assert other.receive(PATIENCE).id == turn.id
    return watch.receive(0)


def threads_of(follower):
    """Return how many threads serve the subscribers of a file, the notifier's not among them."""
    return (follower._thread is not None) + len(follower._listener_threads._threads)


def shown(updates):
    """Return the text that a subscriber shows after these updates of one turn."""
    text = ""
    for update in updates:
        text = text[: update.offset] + update.text
    return text
