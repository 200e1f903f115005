"""`python -m gad` is the command `gad`."""

from __future__ import annotations

from gad.cli import main

main()
