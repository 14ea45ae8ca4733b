"""A store of a peer that does not exist."""

from __future__ import annotations


class AbsentStore:
    """What the tables would call it, and what it would require."""

    name = "a peer that is absent"
    requires = ("mandrake-sessions-has-no-such-peer",)
