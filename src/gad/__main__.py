"""The command `gad`, also as `python -m gad`. Imports nothing, so that Ctrl-C is met from the first moment."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point."""
    try:
        from gad.cli import main as command

        command()
    except KeyboardInterrupt:
        print("stopped before anything was begun", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
