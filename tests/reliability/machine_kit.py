"""The choices of the state machine, and a dict of what must be stored after them."""

import copy

import hypothesis.strategies as st
import pytest

from mandrake_sessions import NewTurn, NotFoundError, ToolCall, TurnFinishedError

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e9, 1e9) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
METADATA = st.dictionaries(TEXT, JSON, max_size=2)
CALLS = st.lists(st.builds(ToolCall, JSON, JSON), max_size=2).map(tuple)
STATUS = st.sampled_from(["streaming", "completed", "error", "interrupted"])
# Which of those that exist is meant; where there are none, one that does not.
PICK = st.integers(0, 7)


class Model:
    """What must be stored: a dict for each session, with its rounds and their turns."""

    def __init__(self):
        self.sessions = {}

    def rounds(self):
        return [each for session in self.sessions.values() for each in session["rounds"]]

    def turns(self):
        return [each for round_ in self.rounds() for each in round_["turns"]]

    def add_stored(self, session, text, ids):
        """Add a session of one round with one turn, which another process has made."""
        round_, request, response, turn = ids
        self.sessions[session] = {
            "title": text,
            "metadata": {},
            "next": 1,
            "revision": 0,
            "rounds": [
                {
                    "id": round_,
                    "index": 0,
                    "content": text,
                    "request": request,
                    "response": response,
                    "next": 1,
                    "turns": [Work.turn(turn, 0, text, (), "completed")],
                }
            ],
        }

    @staticmethod
    def expected(sessions):
        """Return sessions as ``of`` would show them."""
        expected = copy.deepcopy(sessions)
        for session in expected.values():
            for round_ in session["rounds"]:
                del round_["next"]
        return expected

    @staticmethod
    def of(history):
        """Return a session as it is stored, without what no test can foretell."""
        session = history.session
        return {
            "title": session.title,
            "metadata": session.metadata,
            "next": session.next_round_index,
            "revision": session.revision,
            "rounds": [
                {
                    "id": each.id,
                    "index": each.index,
                    "content": each.request.content,
                    "request": each.request.id,
                    "response": each.response.id,
                    "turns": [
                        Work.turn(
                            turn.id,
                            turn.index,
                            turn.content,
                            turn.tool_calls,
                            turn.status,
                            revision=turn.revision,
                        )
                        for turn in each.turns
                    ],
                }
                for each in history.rounds
            ],
        }


class Told:
    """A store that answers to every call what the call that failed would have returned."""

    def __init__(self, result):
        self._result = result

    def __getattr__(self, name):
        return lambda *_, **__: self._result


def pick(entries, number):
    entries = list(entries)
    return entries[number % len(entries)] if entries else None


class Work:
    """Each operation on the store and on the model; ``store`` is a manager or a transaction."""

    def __init__(self, model, store):
        self.model = model
        self.store = store

    def create_session(self, title, metadata):
        made = self.store.create_session(title, metadata=metadata)
        self.model.sessions[made.id] = {
            "title": title,
            "metadata": metadata,
            "next": 0,
            "revision": 0,
            "rounds": [],
        }

    def update_session(self, number, title):
        id = pick(self.model.sessions, number)
        if id is None:
            with pytest.raises(NotFoundError):
                self.store.update_session("unknown", title=title)
            return
        self.store.update_session(id, title=title)
        self.model.sessions[id]["title"] = title
        self.model.sessions[id]["revision"] += 1

    def delete_session(self, number):
        id = pick(self.model.sessions, number)
        assert self.store.delete_session(id or "unknown", missing_ok=True) is (id is not None)
        self.model.sessions.pop(id, None)

    def record_round(self, number, content, turns):
        id = pick(self.model.sessions, number)
        new = [NewTurn(content=text, tool_calls=calls) for text, calls in turns]
        if id is None:
            with pytest.raises(NotFoundError):
                self.store.record_round("unknown", content, new)
            return
        session = self.model.sessions[id]
        made = self.store.record_round(id, content, new, expected_index=session["next"])
        session["rounds"].append(
            {
                "id": made.id,
                "index": session["next"],
                "content": content,
                "request": made.request.id,
                "response": made.response.id,
                "next": len(turns),
                "turns": [
                    self.turn(stored.id, index, text, calls, "completed")
                    for index, (stored, (text, calls)) in enumerate(
                        zip(made.turns, turns, strict=True)
                    )
                ],
            }
        )
        session["next"] += 1

    def update_request(self, number, content):
        round_ = pick(self.model.rounds(), number)
        if round_ is not None:
            self.store.update_request(round_["request"], content=content)
            round_["content"] = content

    def delete_round(self, number):
        round_ = pick(self.model.rounds(), number)
        id = "unknown" if round_ is None else round_["id"]
        assert self.store.delete_round(id, missing_ok=True) is (round_ is not None)
        for session in self.model.sessions.values():
            session["rounds"] = [each for each in session["rounds"] if each is not round_]

    def create_turn(self, number, content, calls, gap):
        round_ = pick(self.model.rounds(), number)
        if round_ is None:
            with pytest.raises(NotFoundError):
                self.store.create_turn("unknown", content=content)
            return
        index = round_["next"] + gap
        made = self.store.create_turn(
            round_["response"],
            content=content,
            tool_calls=calls,
            index=index if gap else None,
        )
        round_["turns"].append(self.turn(made.id, index, content, calls, "streaming"))
        round_["next"] = index + 1

    def update_turn(self, number, content, status):
        turn = pick(self.model.turns(), number)
        if turn is None:
            with pytest.raises(NotFoundError):
                self.store.update_turn("unknown", content=content)
        elif turn["status"] not in {"streaming", status}:
            with pytest.raises(TurnFinishedError):
                self.store.update_turn(turn["id"], content=content, status=status)
        else:
            self.store.update_turn(turn["id"], content=content, status=status)
            turn["content"], turn["status"] = content, status
            turn["revision"] += 1

    def delete_turn(self, number):
        turn = pick(self.model.turns(), number)
        id = "unknown" if turn is None else turn["id"]
        assert self.store.delete_turn(id, missing_ok=True) is (turn is not None)
        for round_ in self.model.rounds():
            round_["turns"] = [each for each in round_["turns"] if each is not turn]

    @staticmethod
    def turn(id, index, content, calls, status, *, revision=0):
        return {
            "id": id,
            "index": index,
            "content": content,
            "calls": calls,
            "status": status,
            "revision": revision,
        }


OPERATIONS = {
    "create_session": st.tuples(TEXT | st.none(), METADATA),
    "update_session": st.tuples(PICK, TEXT),
    "delete_session": st.tuples(PICK),
    "record_round": st.tuples(PICK, TEXT, st.lists(st.tuples(TEXT, CALLS), max_size=3)),
    "update_request": st.tuples(PICK, TEXT),
    "delete_round": st.tuples(PICK),
    "create_turn": st.tuples(PICK, TEXT, CALLS, st.sampled_from([0, 0, 0, 2])),
    "update_turn": st.tuples(PICK, TEXT, STATUS),
    "delete_turn": st.tuples(PICK),
}
# Creating is drawn more often than the rest, or there would be little to work on.
NAMES = [*OPERATIONS, "create_session", "record_round", "record_round", "create_turn"]
OPERATION = st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(name), OPERATIONS[name]))
# A block of a transaction: operations and savepoints with their own, and whether it raises.
BLOCK = st.recursive(
    st.tuples(st.lists(OPERATION, max_size=4), st.booleans()),
    lambda inner: st.tuples(st.lists(OPERATION | inner, max_size=4), st.booleans()),
    max_leaves=3,
)
