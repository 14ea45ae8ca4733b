"""``python -m mandrake_sessions.cli`` is ``mandrake-sessions``."""

from mandrake_sessions.cli import main

if __name__ == "__main__":
    main()
