"""The tokens for stores that append to a turn token by token: this library, and bare APSW."""

from __future__ import annotations

TOKEN = "twenty bytes of text"
TOKENS_OF_A_TURN = 200
"""Then a new turn begins: the text is rewritten with each token, so its length is part of it."""
