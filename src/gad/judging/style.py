"""Does a reply keep the house style? The style is what regular expressions from the run file say it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gad.errors import ConfigError
from gad.judging.statistics import Estimate, bootstrap_mean


class HouseStyle:
    """One or more regular expressions that must all be found in a reply, white space at its ends cut off.

    "The last line starts with `Tip:`" is `(?m)^Tip: .*\\Z`. Raises ConfigError for one that does not compile.
    """

    def __init__(self, patterns: str | Sequence[str]) -> None:
        given = [patterns] if isinstance(patterns, str) else list(patterns)
        if not given:
            raise ConfigError("the house style has no regular expression: give one or leave `style` out")
        self._patterns = [_compiled(pattern) for pattern in given]

    def keeps(self, reply: str) -> bool:
        """True where every expression is found."""
        return all(pattern.search(reply.strip()) for pattern in self._patterns)

    def share(self, replies_by_prompt: Sequence[str | Sequence[str]], *, seed: int, level: float = 0.95) -> Estimate:
        """Share of replies that keep it, by prompt; several replies to one prompt are given as a list."""
        rows = [[replies] if isinstance(replies, str) else replies for replies in replies_by_prompt]
        return bootstrap_mean([[float(self.keeps(reply)) for reply in row] for row in rows], seed=seed, level=level)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"style {pattern!r} is not a regular expression: {error}") from error
