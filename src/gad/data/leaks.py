"""Prompts of one set that are nearly those of another.

MinHash finds the candidates (where there are few pairs in all, every pair is one); each is then compared exactly, so
that no pair is reported that is not one. Of pairs just at the threshold MinHash misses up to 3%, of nearer ones fewer.
Seeds are fixed: the same sets give the same leaks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gad.records import Prompt

_ROUNDING = 1e-9
_HASHES = 240
_SEED = 42
_BATCH = 1024
_CACHED = 8192
_COMPARE_ALL = 100_000
"""Pairs that are compared one by one in about a second."""
_MOST_HITS = 64
"""A prompt that is near so many others is one of a template; the nearest of these is near enough."""


@dataclass(frozen=True, slots=True)
class Leak:
    """Prompt `id` of set `set`, and the prompt of `other_set` that is nearest to it.

    similarity: Jaccard similarity of character n-grams, from the threshold to 1.
    same: whether the two are equal but for case, white space and a last full stop.
    """

    set: str
    id: str
    other_set: str
    other_id: str
    similarity: float
    same: bool

    def __post_init__(self) -> None:
        if not 0.0 < self.similarity <= 1.0:
            raise ValueError(f"leak of prompt {self.id}: similarity {self.similarity} is not in (0, 1]")


def find_leaks(
    prompts: Sequence[Prompt],
    others: Sequence[Prompt],
    *,
    threshold: float,
    ngram: int,
    sets: tuple[str, str] = ("train", "held_out"),
) -> tuple[Leak, ...]:
    """For each of `prompts` that is near one of `others`: the nearest one found. In the order of `prompts`.

    threshold: least Jaccard similarity of the sets of character n-grams; ngram: their length.

    Compared is all that user and assistant say in a prompt; system prompts, which many rows share, are not.
    """
    index = _Index(others, threshold, ngram, len(prompts))
    leaks = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        for prompt, found in zip(batch, index.nearest([normalised(prompt) for prompt in batch]), strict=True):
            if found is not None:
                other_id, similarity, same = found
                leaks.append(Leak(sets[0], prompt.id, sets[1], other_id, similarity, same))
    return tuple(leaks)


def normalised(prompt: Prompt) -> str:
    """What is said in a prompt, without case, Unicode variants, white space and the last full stop."""
    text = " ".join(message.content for message in prompt.messages if message.role != "system")
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .!?")


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared over all; 1 for equal sets."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def ngrams(text: str, n: int) -> frozenset[str]:
    """Character n-grams of a text with a space at either end; a shorter text is its own only one."""
    padded = f" {text} "
    return frozenset(padded[start : start + n] for start in range(max(1, len(padded) - n + 1)))


class _Index:
    """Texts, to be found by their MinHash bands; few pairs in all are compared one by one instead."""

    def __init__(self, prompts: Sequence[Prompt], threshold: float, ngram: int, expected_queries: int) -> None:
        self._threshold = threshold
        self._ids: dict[str, str] = {}
        for prompt in prompts:
            self._ids.setdefault(normalised(prompt), prompt.id)
        self._texts = list(self._ids)
        self._grams = lru_cache(_CACHED)(lambda number: ngrams(self._texts[number], ngram))
        self._ngram = ngram
        self._bands = None if len(self._texts) * expected_queries <= _COMPARE_ALL else _Bands(threshold)
        if self._bands is not None:
            for start in range(0, len(self._texts), _BATCH):
                self._bands.add([ngrams(text, ngram) for text in self._texts[start : start + _BATCH]], start)

    def nearest(self, texts: Sequence[str]) -> list[tuple[str, float, bool] | None]:
        """For each text its nearest: id, similarity, whether it is the same. None below the threshold."""
        grams = [ngrams(text, self._ngram) for text in texts]
        everything: Sequence[int] = range(len(self._texts))
        candidates = [everything] * len(texts) if self._bands is None else self._bands.find(grams)
        return [
            (self._ids[text], 1.0, True) if text in self._ids else self._best(own, numbers)
            for text, own, numbers in zip(texts, grams, candidates, strict=True)
        ]

    def _best(self, grams: frozenset[str], numbers: Sequence[int]) -> tuple[str, float, bool] | None:
        best, best_number, hits = 0.0, -1, 0
        for number in numbers:
            similarity = jaccard(grams, self._grams(number))
            if similarity >= self._threshold - _ROUNDING:
                hits += 1
                if similarity > best:
                    best, best_number = similarity, number
                if hits == _MOST_HITS:
                    break
        return (self._ids[self._texts[best_number]], best, False) if hits else None


class _Bands:
    """rensa's MinHash index, with as many rows a band as still find 97% of the pairs that are just at the threshold."""

    def __init__(self, threshold: float) -> None:
        import rensa

        rows = max(r for r in (1, 2, 3, 4, 5, 6, 8, 10, 12) if 1 - (1 - threshold**r) ** (_HASHES // r) >= 0.97)
        self._lsh = rensa.RMinHashLSH(threshold, _HASHES, _HASHES // rows)
        self._hash = rensa.RMinHash.from_token_sets

    def add(self, grams: Iterable[frozenset[str]], first_number: int) -> None:
        self._lsh.insert_many(self._hash([list(one) for one in grams], _HASHES, _SEED), first_number)

    def find(self, grams: Iterable[frozenset[str]]) -> list[list[int]]:
        return [sorted(self._lsh.query(one)) for one in self._hash([list(g) for g in grams], _HASHES, _SEED)]
