"""What raters see: two replies to one prompt, in an order and on sides that nobody can guess from the page."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gad.config.arena import ArenaConfig, ArenaPair
from gad.config.compared import MADE_BY_RUNS
from gad.config.judging import OWN_SETS
from gad.errors import ConfigError, RunFolderError
from gad.report.gather import TEACHER, Gathered
from gad.report.text import visible
from gad.seeds import stable_seed


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms' replies to one prompt.

    id: a digest of everything a rater judges, so that a vote never outlives the texts it was cast on.
    """

    id: str
    set: str
    prompt_id: str
    turns: tuple[tuple[str, str], ...]
    first: str
    second: str
    first_text: str
    second_text: str

    def swapped(self, sheet: str) -> bool:
        """Whether the first arm's reply stands on the right for this rater's sheet."""
        return stable_seed(0, "arena side", sheet, self.id) % 2 == 1

    def sides(self, sheet: str) -> tuple[str, str]:
        """The arms, left and right, on a sheet."""
        return (self.second, self.first) if self.swapped(sheet) else (self.first, self.second)

    def shown(self, sheet: str) -> dict[str, Any]:
        """What the page gets: texts and sides, no name, no length, no source."""
        texts = (self.first_text, self.second_text)
        left, right = reversed(texts) if self.swapped(sheet) else texts
        turns = [[role, visible(text)] for role, text in self.turns]
        return {"id": self.id, "turns": turns, "left": visible(left), "right": visible(right)}


@dataclass(frozen=True, slots=True)
class Book:
    """All comparisons of an arena, in the order in which every rater meets them.

    run: a digest of the replies; votes on another run's replies are told apart by it.
    identical: prompts left out because both arms gave the very same reply.
    incomplete: prompts left out because one arm has no reply.
    """

    run: str
    name: str
    comparisons: tuple[Comparison, ...]
    identical: int
    incomplete: int

    def find(self, id: str) -> Comparison | None:
        """The comparison of this id."""
        return next((comparison for comparison in self.comparisons if comparison.id == id), None)


def book(run: Gathered, config: ArenaConfig) -> Book:
    """Draw the comparisons. The same replies and settings give the same book.

    Raises ConfigError for an arm, set or decoding that the run does not have, RunFolderError where nothing is left.
    """
    decoding, sets = _decoding(run, config), _sets(run, config)
    found: list[Comparison] = []
    identical = incomplete = 0
    for pair in _pairs(run, config):
        for set_name in sets:
            one, two = run.reply(pair.first, set_name, decoding), run.reply(pair.second, set_name, decoding)
            incomplete += len(one.keys() ^ two.keys())
            for id in sorted(one.keys() & two.keys()):
                if one[id].completion.strip() == two[id].completion.strip():
                    identical += 1
                    continue
                turns = tuple((message.role, message.content) for message in one[id].prompt)
                texts = (one[id].completion, two[id].completion)
                digest = _digest([set_name, id, turns, pair.first, pair.second, texts])
                found.append(Comparison(digest[:20], set_name, id, turns, pair.first, pair.second, *texts))
    if not found:
        raise RunFolderError(
            f"{run.folder} has no two different replies to compare: run `gad generate` first, or name other pairs"
        )
    order = random.Random(stable_seed(0, "arena order", *sorted(item.id for item in found)))
    drawn = order.sample(sorted(found, key=lambda item: item.id), min(config.comparisons, len(found)))
    return Book(fingerprint(run), run.name, tuple(drawn), identical, incomplete)


def fingerprint(run: Gathered) -> str:
    """A digest of the run's own replies, so that models and sets that are added later leave the votes as they are."""
    own = {*MADE_BY_RUNS, TEACHER, run.headline}
    rows = sorted(
        (key.student, key.set, key.decoding or "", id, reply.completion)
        for key, replies in run.replies.items()
        for id, reply in replies.items()
        if key.student in own and key.set in OWN_SETS
    )
    return _digest(rows)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _pairs(run: Gathered, config: ArenaConfig) -> Sequence[ArenaPair]:
    arms = [*run.students, TEACHER]
    if config.pairs:
        for name in {name for pair in config.pairs for name in (pair.first, pair.second)}:
            if name not in arms:
                raise ConfigError(f"arena.pairs: no arm {name!r} in this run; it has {', '.join(arms)}")
        return config.pairs
    control = next((name for name in ("seqkd", "base") if name in arms and name != run.headline), None)
    others = [name for name in (control, TEACHER) if name is not None]
    return [ArenaPair(first=run.headline, second=name) for name in others]


def _sets(run: Gathered, config: ArenaConfig) -> Sequence[str]:
    known = [info.name for info in run.sets]
    for name in config.sets:
        if name not in known:
            raise ConfigError(f"arena.sets: no set {name!r} in this run; it has {', '.join(known) or 'none'}")
    return config.sets or known


def _decoding(run: Gathered, config: ArenaConfig) -> str | None:
    known = [info.name for info in run.decodings]
    if config.decoding is not None and config.decoding not in known:
        raise ConfigError(f"arena.decoding: no {config.decoding!r} in this run; it has {', '.join(known) or 'none'}")
    return config.decoding or (known[0] if known else None)
