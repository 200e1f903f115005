"""Diagnostics of texts: overlap with the teacher's, variety, repetition. None of them says which reply is better.

(In the paper SeqKD shares *more* n-grams with the teacher than GAD does, and is preferred less.) Words are runs of
letters and digits in lower case; a punctuation mark is a word, and so is each Chinese or Japanese character.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")

Tokens = Sequence[Hashable]


def words(text: str) -> list[str]:
    """The words that every figure here counts."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Tokens, n: int) -> Counter[tuple[Hashable, ...]]:
    """How often each run of n tokens occurs. Raises ValueError for n below 1."""
    if n < 1:
        raise ValueError(f"n-grams of n={n}: n is at least 1")
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def repetition(reply: str | Tokens, n: int = 4) -> float:
    """Share of a reply's n-grams that already occurred earlier in it: 1 - distinct / all (seq-rep-n, arXiv 1908.04319).

    reply: a text, or token ids. 0 where nothing repeats and where the reply is shorter than n; nears 1 in a loop.
    """
    counts = ngrams(words(reply) if isinstance(reply, str) else reply, n)
    total = counts.total()
    return 1.0 - len(counts) / total if total else 0.0


def ngram_f1(student: str, teacher: str, n: int) -> float | None:
    """F1 of the two replies' n-grams as multisets; 1 for equal texts. None where neither text has n words."""
    ours, theirs = ngrams(words(student), n), ngrams(words(teacher), n)
    total = ours.total() + theirs.total()
    return 2.0 * (ours & theirs).total() / total if total else None


def rouge_l(student: str, teacher: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004); 1 for equal texts, 0 where either is empty."""
    ours, theirs = words(student), words(teacher)
    total = len(ours) + len(theirs)
    return 2.0 * _common_subsequence(ours, theirs) / total if ours and theirs else 0.0


def self_bleu(replies: Sequence[str]) -> float | None:
    """Mean BLEU-4 of each reply against all the others (arXiv 1802.01886): higher is less varied. None below 2 replies.

    Counts above one word get one added (Lin and Och 2004), so that one missing 4-gram is not 0. Linear in the replies.
    """
    tokens = [words(reply) for reply in replies]
    if len(tokens) < 2:
        return None
    counts = [[ngrams(row, n) for n in (1, 2, 3, 4)] for row in tokens]
    most = [_two_highest(row[index] for row in counts) for index in range(4)]
    lengths = sorted(len(row) for row in tokens)
    return math.fsum(_bleu(row, most, lengths) for row in counts) / len(tokens)


def distinct_n(replies: Iterable[str], n: int) -> float:
    """Distinct n-grams over all n-grams of all replies together (arXiv 1510.03055); falls with the amount of text."""
    counts: Counter[tuple[Hashable, ...]] = Counter()
    for reply in replies:
        counts.update(ngrams(words(reply), n))
    return len(counts) / counts.total() if counts else 0.0


def compression_ratio(replies: Iterable[str]) -> float:
    """Bytes over deflated bytes of all replies, one a line (arXiv 2403.00553): higher is less varied. 1 for no text."""
    raw = "\n".join(replies).encode("utf-8", "surrogatepass")
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 1.0


def _common_subsequence(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one big-integer step per word of `two`."""
    places: dict[str, int] = {}
    for index, word in enumerate(one):
        places[word] = places.get(word, 0) | (1 << index)
    full = (1 << len(one)) - 1
    state = full
    for word in two:
        matched = state & places.get(word, 0)
        state = ((state + matched) | (state - matched)) & full
    return len(one) - state.bit_count()


def _two_highest(counts: Iterable[Counter[tuple[Hashable, ...]]]) -> dict[tuple[Hashable, ...], tuple[int, int]]:
    """n-gram -> its highest count in one reply, and the highest in another: the most that the others have."""
    highest: dict[tuple[Hashable, ...], tuple[int, int]] = {}
    for row in counts:
        for gram, count in row.items():
            first, second = highest.get(gram, (0, 0))
            highest[gram] = (count, first) if count > first else (first, max(second, count))
    return highest


def _bleu(
    counts: list[Counter[tuple[Hashable, ...]]],
    most: list[dict[tuple[Hashable, ...], tuple[int, int]]],
    lengths: list[int],
) -> float:
    length = counts[0].total()
    if length == 0:
        return 0.0
    logs = []
    for index in range(min(4, length)):
        matched = 0
        for gram, count in counts[index].items():
            first, second = most[index][gram]
            matched += min(count, second if count == first else first)
        smoothing = 0 if index == 0 else 1
        precision = (matched + smoothing) / (counts[index].total() + smoothing)
        if precision == 0.0:
            return 0.0
        logs.append(math.log(precision))
    others = list(lengths)
    others.remove(length)
    closest = min(others, key=lambda other: (abs(other - length), other))
    return math.exp(min(0.0, 1.0 - closest / length) + math.fsum(logs) / len(logs))
