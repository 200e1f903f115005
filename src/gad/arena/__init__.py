"""Blind comparison by people: a page on 127.0.0.1, or one HTML file to send to a rater. No torch here.

comparisons (what is shown) -> votes (what was said, on disk at once) -> results (win rates, agreement)
"""

from __future__ import annotations

from gad.arena.results import results
from gad.arena.server import serve
from gad.arena.sheet import export, import_votes

__all__ = ["export", "import_votes", "results", "serve"]
