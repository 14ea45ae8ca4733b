"""The log of the store's acknowledgements, in its own file, which is fsynced.

A call counts as acknowledged once its line is on disk. One thread writes the lines of all agents
and fsyncs them in groups, so that the log does not delay the calls it records.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from mandrake_sessions import Exchange, Round, Session, Turn


class DemoError(Exception):
    """The demo cannot begin or go on; the message says why."""


FILE_NAME: Final = "acknowledged.jsonl"

_GROUP_SECONDS: Final = 0.05
"""Between two fsyncs: each one is time that the disk does not give to the databases."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line: the subject of the log.

    Attributes:
        databases: the databases' names, with their paths below the log's folder.
    """

    databases: dict[str, str]


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call that returned, or was refused: the row that must, or must not, be in the database.

    Attributes:
        database: its name in the header.
        call: the method.
        kind: ``session``, ``round`` or ``turn``.
        id: of the row.
        parent: the session of a round, the response of a turn.
        index: of a round or turn.
        revision: of a turn; of a refused update the one it would have made.
        size: bytes of the content.
        digest: SHA-256 of the content, in hexadecimal.
        status: of a turn.
        output_tokens: of a turn.
        refused: whether the call was refused because of the shutdown.
    """

    database: str
    call: str
    kind: str
    id: str
    parent: str = ""
    index: int = 0
    revision: int = 0
    size: int = 0
    digest: str = ""
    status: str = ""
    output_tokens: int = 0
    refused: bool = False


def digest_of(content: bytes) -> str:
    """Return the fingerprint of a content."""
    return hashlib.sha256(content).hexdigest()


def entries_of(database: str, call: str, made: Session | Round | Turn) -> list[Entry]:
    """Return the lines for what a call returned."""
    if isinstance(made, Session):
        return [Entry(database=database, call=call, kind="session", id=made.id)]
    if isinstance(made, Turn):
        return [_turn_entry(database, call, made)]
    asked = made.request.content.encode()
    entries = [
        Entry(
            database=database,
            call=call,
            kind="round",
            id=made.id,
            parent=made.session_id,
            index=made.index,
            size=len(asked),
            digest=digest_of(asked),
        )
    ]
    if isinstance(made, Exchange):
        entries += [_turn_entry(database, call, turn) for turn in made.turns]
    return entries


def _turn_entry(database: str, call: str, turn: Turn) -> Entry:
    content = turn.content.encode()
    return Entry(
        database=database,
        call=call,
        kind="turn",
        id=turn.id,
        parent=turn.response_id,
        index=turn.index,
        revision=turn.revision,
        size=len(content),
        digest=digest_of(content),
        status=turn.status.value,
        output_tokens=turn.output_tokens,
    )


class Ledger:
    """Writes the log; used from any number of threads.

    Args:
        folder: where the log goes; there must be none.
        header: its first line.

    Attributes:
        acknowledged: entries of calls that returned, in the file and fsynced.
        refused: entries of refused calls, in the file and fsynced.
        failure: why nothing is written any more, such as a full disk.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.acknowledged = 0
        self.refused = 0
        self.failure: OSError | None = None
        self._file = open(folder / FILE_NAME, "xb")  # noqa: SIM115  # close() does
        self._bring_to_disk(msgspec.json.encode(header) + b"\n")
        self._received: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="demo-ledger", daemon=True)
        self._thread.start()

    def note(self, entries: Iterable[Entry]) -> None:
        """Hand entries over; those of one thread reach the file in their order."""
        for entry in entries:
            self._received.put(entry)

    def close(self) -> None:
        """Bring everything that was handed over to disk."""
        self._closing.set()
        self._thread.join()
        try:
            self._file.close()
        except OSError as error:
            self.failure = self.failure or error

    def _write(self) -> None:
        while True:
            is_last = self._closing.wait(_GROUP_SECONDS)
            group = [self._received.get() for _ in range(self._received.qsize())]
            if group:
                try:
                    self._bring_to_disk(
                        b"".join(msgspec.json.encode(entry) + b"\n" for entry in group)
                    )
                except OSError as error:
                    self.failure = error
                    return
                refused = sum(entry.refused for entry in group)
                self.refused += refused
                self.acknowledged += len(group) - refused
            if is_last and self._received.empty():
                return

    def _bring_to_disk(self, lines: bytes) -> None:
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())


def read_ledger(folder: Path) -> tuple[Header, list[Entry]]:
    """Return a log; a last line that was never finished was never acknowledged.

    Raises:
        DemoError: there is no log, or it is of another program.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise DemoError(f"There is no {FILE_NAME} in {folder}: name a demo's directory.")
    head, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
    decode = msgspec.json.Decoder(Entry).decode
    try:
        return msgspec.json.decode(head, type=Header), [decode(line) for line in lines]
    except msgspec.MsgspecError as error:
        raise DemoError(f"{path} is not a demo's log: {error}") from error
