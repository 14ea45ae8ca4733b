"""Text that grows while others read it."""

import random
import sys
import threading

from mandrake_sessions.live.text import GrowingText


def test_every_part_of_a_text_can_be_read_however_it_was_appended():
    draw = random.Random(3)
    text = GrowingText("at fïrst ")
    whole = "at fïrst "
    for number in range(5_000):
        piece = draw.choice(["", "a", "é€", f"token {number} ", "\0", "😀" * 30])
        text.append(piece)
        whole += piece
        if number % 97 == 0:
            begin, end = draw.randrange(len(whole)), draw.randrange(len(whole) + 9)
            assert text.since(begin, end) == whole[begin:end]
    assert text.length == len(whole)
    assert text.since(0) == whole
    assert text.since(len(whole)) == ""
    assert text.since(len(whole) + 5) == ""


def test_a_long_text_stays_a_few_pieces():
    text = GrowingText()
    for _ in range(200_000):
        text.append("20 characters, ascii")
    pieces, _ = text._parts
    assert len(pieces) < 1_000


def test_readers_in_other_threads_see_the_text_up_to_its_length():
    text = GrowingText()
    pieces = [f"{number} " for number in range(30_000)]
    whole = "".join(pieces)
    wrong: list[int] = []
    is_over = threading.Event()

    def read() -> None:
        seen = 0
        while not is_over.is_set():
            length = text.length
            if text.since(seen, length) != whole[seen:length]:
                wrong.append(seen)
            seen = length if seen < length - 1_000 else 0

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for piece in pieces:
        text.append(piece)
    is_over.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert text.since(0) == whole


def test_a_watcher_is_called_when_the_piece_can_be_read():
    text = GrowingText("a")
    seen: list[str] = []
    text.append("b")
    text.on_growth = lambda: seen.append(text.since(1))
    text.append("c")
    text.append("d")
    text.on_growth = None
    text.append("e")
    assert seen == ["bc", "bcd"]


def test_stored_text_is_distinguished_from_text_in_memory():
    text = GrowingText("stored")
    text.append(" not yet")
    assert text.stored == 6
    assert text.since(text.stored) == " not yet"
    text.mark_stored(10)
    assert text.since(text.stored) == " yet"


def test_a_piece_whose_append_was_interrupted_is_there_once_or_not_at_all():
    """Ctrl-C may come before any line of ``append``; the next piece follows all the same."""
    lines = 0
    for at in range(1, 20):
        text = GrowingText("a")
        seen = 0

        def interrupt(frame, event, _argument, at=at):
            nonlocal seen
            if frame.f_code is not GrowingText.append.__code__:
                return None
            seen += event == "line"
            if event == "line" and seen == at:
                raise KeyboardInterrupt
            return interrupt

        sys.settrace(interrupt)
        try:
            text.append("b")
        except KeyboardInterrupt:
            lines += 1
        finally:
            sys.settrace(None)
        text.append("c")
        assert text.since(0) in ("ac", "abc")
        assert text.length == len(text.since(0))
    assert lines >= 5
