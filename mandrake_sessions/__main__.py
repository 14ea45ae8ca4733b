"""``python -m mandrake_sessions`` is ``mandrake-sessions``."""

from mandrake_sessions.cli import main

if __name__ == "__main__":
    main()
