"""Which replies are trained on: the others stay in the ledger, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from importlib import import_module

from gad.config.data import Filters
from gad.config.teacher import NearDuplicates, TeacherConfig
from gad.data.filters import why_drop_reply
from gad.data.leaks import jaccard, ngrams
from gad.errors import ConfigError
from gad.teacher.requests import Reply

_SNAPSHOT = re.compile(r"([-@:]?(\d{3,}[\d-]*|latest))?|:.*")
_HALF = re.compile("[\ud800-\udfff]")
"""Of a surrogate pair: such a text has no UTF-8."""
_HASHES, _BANDS, _SEED = 128, 32, 42


class Chooser:
    """Says of each reply, in the order of the prompt set, whether it is trained on.

    models: replies by the name that the provider gave, over the whole ledger.
    text_of: the earlier row behind a number that `why_not` returned None for; read again to compare near-duplicates.
    Raises ConfigError where languages are asked for and py3langid is not installed.
    """

    def __init__(
        self, config: TeacherConfig, filters: Filters, models: Iterable[str], text_of: Callable[[int], str]
    ) -> None:
        self._config, self._filters = config, filters
        self._accepted = accepted_models(config, models)
        self._language = _language_of() if config.languages else None
        self._repeated = None if config.near_duplicates is None else _Repeated(config.near_duplicates, text_of)

    def why_not(self, reply: Reply, row_text: str, number: int) -> str | None:
        """The reason to leave a reply out, or None. row_text: prompt and reply; number: stands for them later."""
        reason = self._why_not_alone(reply)
        if reason is None and self._repeated is not None and self._repeated.seen(row_text, number):
            return "near-duplicate"
        return reason

    def _why_not_alone(self, reply: Reply) -> str | None:
        filters = self._filters
        if reply.finish_reason == "content_filter":
            return "content filter"
        if reply.refusal is not None and filters.drop_refused:
            return "refused"
        if reply.model is not None and reply.model not in self._accepted:
            return f"written by {reply.model}, not by {self._config.model}"
        if _HALF.search(reply.text):
            return "half a character"
        reason = why_drop_reply(reply.text, reply.finished, filters)
        if reason is None and not reply.text.strip():
            reason = "empty reply"
        if reason is None and self._language is not None:
            language = self._language(reply.text)
            if language not in self._config.languages:
                reason = f"in another language ({language})"
        return reason


def accepted_models(config: TeacherConfig, models: Iterable[str]) -> frozenset[str]:
    """The names among `models` that count as the teacher."""
    names = frozenset(models)
    if config.accept_models:
        return frozenset(n for n in names if any(fnmatchcase(n, pattern) for pattern in config.accept_models))
    own = frozenset(name for name in names if same_model(config.model, name))
    return own or names


def same_model(asked: str, named: str) -> bool:
    """Whether a name is the model's or that of a dated snapshot: gpt-4o-2024-08-06 for gpt-4o, not gpt-4o-mini."""
    wanted, got = (name.rsplit("/", 1)[-1].lower() for name in (asked, named))
    wanted = wanted.removesuffix("-latest")
    return got.startswith(wanted) and _SNAPSHOT.fullmatch(got[len(wanted) :]) is not None


def _language_of() -> Callable[[str], str]:
    try:
        classify = import_module("py3langid.langid").classify
    except ImportError as error:
        raise ConfigError("languages: telling them apart needs py3langid: pip install py3langid") from error

    def language_of(text: str) -> str:
        return str(classify(text)[0])

    return language_of


class _Repeated:
    """Rows seen so far, found by MinHash and then compared exactly."""

    def __init__(self, settings: NearDuplicates, text_of: Callable[[int], str]) -> None:
        import rensa

        self._settings, self._text_of = settings, text_of
        self._lsh = rensa.RMinHashLSH(settings.threshold, _HASHES, _BANDS)
        self._hash = rensa.RMinHash.from_token_sets

    def seen(self, text: str, number: int) -> bool:
        """Whether an earlier row is near; a row without one is remembered."""
        grams = ngrams(_normal(text), self._settings.ngram)
        (hashed,) = self._hash([list(grams)], _HASHES, _SEED)
        for earlier in self._lsh.query(hashed):
            other = ngrams(_normal(self._text_of(earlier)), self._settings.ngram)
            if jaccard(grams, other) >= self._settings.threshold:
                return True
        self._lsh.insert_many([hashed], number)
        return False


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def usage_totals(sums: Mapping[str, int], reply: Reply) -> dict[str, int]:
    """Token counts with those of one more reply."""
    if reply.usage is None:
        return {**sums, "replies_without_usage": sums.get("replies_without_usage", 0) + 1}
    return {**sums, **{name: sums.get(name, 0) + count for name, count in reply.usage.as_dict().items()}}
