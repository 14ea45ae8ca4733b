"""The agents and readers of the demo: threads that do the work of a host."""

from __future__ import annotations

import random
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from time import monotonic
from typing import NoReturn, TypeVar

import msgspec

from examples.demo.ledger import Entry, Ledger, entries_of
from mandrake_sessions import (
    Exchange,
    HandleReleasedError,
    NewTurn,
    NotInitializedError,
    PoolClosedError,
    Round,
    SessionHistory,
    SessionManager,
    Turn,
    TurnInterruptedError,
    TurnStatus,
    TurnUpdate,
    TurnWriter,
)

T = TypeVar("T")

_MODEL = "demo-model"
_PROSE = (
    "the nightly job waits for a lock that the backup holds so every run ends a little later "
    "than the one before until it meets the morning 日本語 naïve café ✓ and someone looks"
)
_WORDS = _PROSE.split()
_READ_LAST = 20
_TOKEN_SECONDS = 0.002
_TOKENS_A_FLUSH = 50
# The errors of a call during or after the closing; it has written nothing.
_REFUSALS = (PoolClosedError, NotInitializedError, HandleReleasedError, TurnInterruptedError)
_MANY_ERRORS = 100


class Place(msgspec.Struct, frozen=True):
    """One database of the demo and the sessions in it."""

    name: str
    sessions: SessionManager
    session_ids: tuple[str, ...]


class Stage:
    """The state that agents and readers share.

    Args:
        places: the databases.
        ledger: gets the acknowledgements.
        is_closing: whether the shutdown has begun: only then a refusal is no error.
    """

    def __init__(
        self, places: tuple[Place, ...], ledger: Ledger, is_closing: Callable[[], bool]
    ) -> None:
        self.places = places
        self.ledger = ledger
        self.is_closing = is_closing
        self.errors: list[str] = []

    def fail(self, who: str, problem: BaseException | str) -> None:
        """Note an error, of which the demo promises none."""
        text = problem if isinstance(problem, str) else f"{type(problem).__name__}: {problem}"
        if len(self.errors) < _MANY_ERRORS:
            self.errors.append(f"{who}: {text}")


class RefusedError(Exception):
    """A call was refused because of the shutdown."""


class FailedError(Exception):
    """A call failed, and the stage has noted it."""


class Agent(threading.Thread):
    """Adds rounds with growing answers until it is refused.

    Attributes:
        rounds: rounds acknowledged.
        turns: turns acknowledged.
        updates: flushes and ends of streams acknowledged.
        tokens: tokens written to streams.
        longest_call: the longest call, in seconds.
    """

    def __init__(self, number: int, stage: Stage) -> None:
        super().__init__(name=f"agent-{number}", daemon=True)
        self.rounds = self.turns = self.updates = self.tokens = 0
        self.longest_call = 0.0
        self._number = number
        self._stage = stage
        self._random = random.Random(number)

    def run(self) -> None:
        """Work: first in one database, then in the next, in every manner there is."""
        styles = (self._stream, self._stream, self._record, self._stream, self._in_transaction)
        try:
            exchange = self._number
            while True:
                place = self._stage.places[exchange % len(self._stage.places)]
                session_id = self._random.choice(place.session_ids)
                question = f"agent {self._number}, question {exchange}: why is it late?"
                try:
                    styles[exchange % len(styles)](place, session_id, question)
                except FailedError:
                    if len(self._stage.errors) >= _MANY_ERRORS:
                        return
                exchange += 1
        except RefusedError:
            self._knock_everywhere()

    # -- one exchange -----------------------------------------------------------------------

    def _stream(self, place: Place, session_id: str, question: str) -> None:
        """Ask, then stream the answer token by token, as it comes from a model."""
        round_ = self._ask(place, session_id, question)
        turn_id = str(uuid.uuid4())
        with self._call(
            place,
            "stream_turn",
            Entry(database=place.name, call="stream_turn", kind="turn", id=turn_id),
            lambda: place.sessions.stream_turn(round_.response.id, id=turn_id, model=_MODEL),
        ) as writer:
            self.turns += 1
            written = len(self._write(place, writer)) // 4

            def complete() -> Turn:
                writer.set_usage(
                    input_tokens=812,
                    output_tokens=written,
                    input_cost=0.0024,
                    output_cost=written * 15e-6,
                )
                return writer.complete()

            self._call(place, "complete", self._end_of(place, "complete", writer), complete)
            self.updates += 1

    def _write(self, place: Place, writer: TurnWriter) -> str:
        """Write an answer's tokens; text that is flushed now and then counts as acknowledged."""
        text = ""
        *_, answer = self._growing_answer()
        for number, token in enumerate(answer.split(" "), 1):
            try:
                writer.write(f"{token} ")
            except _REFUSALS as error:
                self._refuse(self._end_of(place, "write", writer), error)
            text += f"{token} "
            self.tokens += 1
            time.sleep(_TOKEN_SECONDS)
            if number % _TOKENS_A_FLUSH == 0:
                self._flush(place, writer, text)
        return text

    def _flush(self, place: Place, writer: TurnWriter, text: str) -> None:
        def flushed() -> Turn:
            writer.flush()
            return msgspec.structs.replace(writer.turn, content=text)

        self._call(place, "flush", self._end_of(place, "flush", writer), flushed)
        self.updates += 1

    def _ask(self, place: Place, session_id: str, question: str) -> Round:
        round_id = str(uuid.uuid4())
        round_ = self._call(
            place,
            "create_round",
            Entry(database=place.name, call="create_round", kind="round", id=round_id),
            lambda: place.sessions.create_round(session_id, question, id=round_id),
        )
        self.rounds += 1
        return round_

    def _record(self, place: Place, session_id: str, question: str) -> None:
        """Store a finished exchange in one call: a tool is asked first, then it answers."""
        round_id = str(uuid.uuid4())
        *_, answer = self._growing_answer()
        call = {"call": {"name": "read_log", "lines": 40}, "response": {"ok": True}}
        turns = [
            NewTurn(content="", tool_calls=[call], output_tokens=12, model=_MODEL),
            NewTurn(content=answer, output_tokens=len(answer) // 4, model=_MODEL),
        ]
        self._call(
            place,
            "record_round",
            Entry(database=place.name, call="record_round", kind="round", id=round_id),
            lambda: place.sessions.record_round(session_id, question, turns, id=round_id),
        )
        self.rounds += 1
        self.turns += len(turns)

    def _in_transaction(self, place: Place, session_id: str, question: str) -> None:
        """Store question and answer in one transaction block: both, or neither."""
        round_id = str(uuid.uuid4())
        *_, answer = self._growing_answer()

        def block() -> Exchange:
            with place.sessions.transaction() as tx:
                round_ = tx.create_round(session_id, question, id=round_id)
                turn = tx.create_turn(
                    round_.response.id,
                    content=answer,
                    status=TurnStatus.COMPLETED,
                    output_tokens=len(answer) // 4,
                    model=_MODEL,
                )
            fields = {name: getattr(round_, name) for name in round_.__struct_fields__}
            return Exchange(**fields, turns=(turn,))

        self._call(
            place,
            "transaction",
            Entry(database=place.name, call="transaction", kind="round", id=round_id),
            block,
        )
        self.rounds += 1
        self.turns += 1

    def _growing_answer(self) -> Iterator[str]:
        text = ""
        for _ in range(self._random.randint(4, 16)):
            words = self._random.choices(_WORDS, k=self._random.randint(8, 32))
            text += " ".join(words) + " "
            yield text

    # -- one call ---------------------------------------------------------------------------

    def _end_of(self, place: Place, call: str, writer: TurnWriter) -> Entry:
        """Return what a refused call of a stream promises: that the turn was not completed."""
        return Entry(
            database=place.name,
            call=call,
            kind="turn",
            id=writer.id,
            status=TurnStatus.COMPLETED.value,
        )

    def _call(self, place: Place, call: str, intent: Entry, work: Callable[[], T]) -> T:
        """Make a call, and note its outcome."""
        began = monotonic()
        try:
            made = work()
        except _REFUSALS as error:
            self._refuse(intent, error)
        except Exception as error:  # of any kind: the demo promises none
            self._stage.fail(f"{self.name} {call}", error)
            raise FailedError from error
        self.longest_call = max(self.longest_call, monotonic() - began)
        stored = made.turn if isinstance(made, TurnWriter) else made
        assert isinstance(stored, Round | Turn)
        self._stage.ledger.note(entries_of(place.name, call, stored))
        return made

    def _refuse(self, intent: Entry, error: BaseException) -> NoReturn:
        """Note that a call was refused, which only a shutdown may do."""
        if not self._stage.is_closing():
            self._stage.fail(f"{self.name} {intent.call}", error)
            raise FailedError from error
        self._stage.ledger.note([msgspec.structs.replace(intent, refused=True)])
        raise RefusedError from error

    def _knock_everywhere(self) -> None:
        """Try each database once more: none of them may take anything now."""
        for place in self._stage.places:
            try:
                self._ask(place, place.session_ids[0], f"{self.name} at a closed door")
            except RefusedError:
                continue
            except FailedError:
                return
            self._stage.fail(self.name, f"{place.name} took a round after it had refused one")


class Reader(threading.Thread):
    """Renders histories until it is refused, and checks what must always hold.

    Attributes:
        histories: histories rendered.
    """

    def __init__(self, number: int, stage: Stage) -> None:
        super().__init__(name=f"reader-{number}", daemon=True)
        self.histories = 0
        self._stage = stage
        self._random = random.Random(-number)
        # Of each turn the last look: revision, characters and checksum of its content.
        self._seen: dict[str, tuple[int, int, int]] = {}

    def run(self) -> None:
        """Read one session after the other, newest changes first."""
        try:
            while True:
                place = self._random.choice(self._stage.places)
                for session in place.sessions.list_sessions(limit=2):
                    history = place.sessions.render_session_history(session.id, last=_READ_LAST)
                    self._check(history)
                    self.histories += 1
        except _REFUSALS as error:
            if not self._stage.is_closing():
                self._stage.fail(self.name, error)
        except Exception as error:  # noqa: BLE001  # of any kind: the demo promises none
            self._stage.fail(self.name, error)

    def _check(self, history: SessionHistory) -> None:
        last = history.session.next_round_index
        indexes = [exchange.index for exchange in history.rounds]
        if indexes != list(range(last - len(indexes), last)):
            self._stage.fail(self.name, f"round indexes have gaps: {indexes} before {last}")
        for exchange in history.rounds:
            of_turns = [turn.index for turn in exchange.turns]
            if of_turns != list(range(len(of_turns))):
                self._stage.fail(self.name, f"turn indexes have gaps: {of_turns}")
            for turn in exchange.turns:
                self._check_growth(turn)

    def _check_growth(self, turn: Turn) -> None:
        revision, length, checksum = self._seen.get(turn.id, (0, 0, zlib.crc32(b"")))
        if turn.revision < revision:
            self._stage.fail(self.name, f"turn {turn.id} went back to revision {turn.revision}")
        if zlib.crc32(turn.content[:length].encode()) != checksum:
            self._stage.fail(self.name, f"turn {turn.id} lost text it had")
        self._seen[turn.id] = (
            turn.revision,
            len(turn.content),
            zlib.crc32(turn.content.encode()),
        )


class Watcher(threading.Thread):
    """Follows a session until everything is closed, and puts its turns together from the pieces.

    Attributes:
        updates: states and pieces that it got.
    """

    def __init__(self, stage: Stage, place: Place) -> None:
        super().__init__(name=f"watcher-{place.name}", daemon=True)
        self.updates = 0
        self._stage = stage
        self._place = place
        self._texts: dict[str, str] = {}

    def run(self) -> None:
        """Watch: the pieces must make up the turn's text in the end."""
        try:
            with self._place.sessions.watch_session(self._place.session_ids[0]) as watch:
                for event in watch:
                    self.updates += 1
                    if isinstance(event, TurnUpdate):
                        self._add(event)
        except _REFUSALS as error:
            if not self._stage.is_closing():
                self._stage.fail(self.name, error)
        except Exception as error:  # noqa: BLE001  # of any kind: the demo promises none
            self._stage.fail(self.name, error)

    def _add(self, update: TurnUpdate) -> None:
        turn = update.turn
        text = self._texts.get(turn.id, "")[: update.offset] + update.text
        self._texts[turn.id] = text
        if turn.status.is_finished and text != turn.content:
            self._stage.fail(self.name, f"a watcher got another text of turn {turn.id}")
