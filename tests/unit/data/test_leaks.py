"""Near-duplicates: exact similarities, found by MinHash where there are many pairs."""

from __future__ import annotations

import random
from itertools import product

import pytest

from gad.data import Leak, find_leaks, leaks
from gad.records import Message, Prompt

TEXT = """
ice water river stone garden kettle window letter train bridge candle forest market copper island
teacher blanket pepper violin harbour mirror ladder pocket winter engine feather
"""
WORDS = TEXT.split()


def prompts(prefix: str, texts: list[str]) -> list[Prompt]:
    return [Prompt.from_text(f"{prefix}{i}", text) for i, text in enumerate(texts)]


def sentences(rng: random.Random, count: int) -> list[str]:
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(8, 25))) for _ in range(count)]


def noisy(rng: random.Random, text: str, share: float) -> str:
    return " ".join(rng.choice(WORDS) if rng.random() < share else word for word in text.split())


def naive(left: list[Prompt], right: list[Prompt], threshold: float, n: int) -> dict[str, float]:
    """By definition: best |A & B| / |A | B| of the character n-grams, for who reaches the threshold."""

    def grams(text: str) -> set[str]:
        text = f" {text.lower()} "
        return {text[i : i + n] for i in range(len(text) - n + 1)}

    best: dict[str, float] = {}
    for one, other in product(left, right):
        a, b = grams(one.text), grams(other.text)
        best[one.id] = max(best.get(one.id, 0.0), len(a & b) / len(a | b))
    return {id_: similarity for id_, similarity in best.items() if similarity >= threshold}


def test_similarity_by_hand() -> None:
    # " abcdefg " and " abcdefh " have five 5-grams each; " abcd", "abcde" and "bcdef" are in both: 3 of 7.
    (leak,) = find_leaks(prompts("a", ["abcdefg"]), prompts("b", ["abcdefh"]), threshold=0.4, ngram=5)
    assert leak == Leak("train", "a0", "held_out", "b0", 3 / 7, False)
    assert find_leaks(prompts("a", ["abcdefg"]), prompts("b", ["abcdefh"]), threshold=0.43, ngram=5) == ()
    assert len(find_leaks(prompts("a", ["abcdefg"]), prompts("b", ["abcdefh"]), threshold=3 / 7, ngram=5)) == 1


@pytest.mark.parametrize("compare_all", [0, 10**9])
def test_the_nearest_is_named_and_the_first_of_equals(monkeypatch: pytest.MonkeyPatch, compare_all: int) -> None:
    monkeypatch.setattr(leaks, "_COMPARE_ALL", compare_all)
    text = "How do I get a candle stain out of a blanket"
    others = prompts("b", [f"{text} by hand", f"{text} now", f"{text} yes", f"{text} now", text + " today"])
    (leak,) = find_leaks(prompts("a", [f"{text} ice"]), others, threshold=0.6, ngram=5)
    assert leak.other_id == "b1"
    (same,) = find_leaks(prompts("a", [f"{text} now"]), others, threshold=0.6, ngram=5)
    assert (same.other_id, same.same) == ("b1", True)


@pytest.mark.parametrize("other", ["what is  ICE", "What is ice?", "\uff37hat is ice.", "What\nis ice ?!"])
def test_case_width_white_space_and_last_stop_do_not_count(other: str) -> None:
    (leak,) = find_leaks(prompts("a", ["What is ice?"]), prompts("b", [other]), threshold=1.0, ngram=5)
    assert (leak.similarity, leak.same) == (1.0, True)


def test_what_matters_is_not_normalised_away() -> None:
    left = prompts("a", ["What is 3 + 4?", "hi", "a b"])
    assert find_leaks(left, prompts("b", ["What is 3 - 4?", "ho", "ab"]), threshold=1.0, ngram=5) == ()


@pytest.mark.parametrize("compare_all", [0, 10**9])
def test_a_reworded_prompt_is_found_and_others_are_not(monkeypatch: pytest.MonkeyPatch, compare_all: int) -> None:
    monkeypatch.setattr(leaks, "_COMPARE_ALL", compare_all)
    train = prompts("a", ["You are captain Hook, why are you harassing the lost boys?", "How do I descale a kettle?"])
    held = prompts("b", ["You are playing captain Hook, why are you harassing the lost boys?", "How do I train a dog?"])
    (leak,) = find_leaks(train, held, threshold=0.6, ngram=5)
    assert (leak.id, leak.other_id, leak.same) == ("a0", "b0", False)
    assert 0.6 < leak.similarity < 1.0


@pytest.mark.parametrize("compare_all", [0, 10**9])
@pytest.mark.parametrize(("threshold", "n"), [(0.6, 5), (0.8, 5), (0.5, 3)])
def test_agrees_with_the_definition(
    monkeypatch: pytest.MonkeyPatch, compare_all: int, threshold: float, n: int
) -> None:
    monkeypatch.setattr(leaks, "_COMPARE_ALL", compare_all)
    rng = random.Random(0)
    base = sentences(rng, 60)
    changed = [noisy(rng, text, rng.choice([0.0, 0.05, 0.1, 0.2, 0.4])) for text in base for _ in range(3)]
    left, right = prompts("a", changed), prompts("b", base)
    expected = naive(left, right, threshold, n)
    found = {leak.id: leak.similarity for leak in find_leaks(left, right, threshold=threshold, ngram=n)}
    assert len(expected) > 50
    assert found.items() <= expected.items()
    assert len(found) >= (len(expected) if compare_all else 0.97 * len(expected))


def test_the_same_sets_give_the_same_leaks_in_the_order_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_COMPARE_ALL", 0)
    rng = random.Random(1)
    base = sentences(rng, 2000)
    left, right = prompts("a", [noisy(rng, text, 0.1) for text in base]), prompts("b", base)
    first = find_leaks(left, right, threshold=0.6, ngram=5)
    assert find_leaks(left, right, threshold=0.6, ngram=5) == first
    order = [int(leak.id[1:]) for leak in first]
    assert order == sorted(order)
    backwards = find_leaks(left[::-1], right, threshold=0.6, ngram=5)
    assert sorted(backwards, key=lambda leak: leak.id) == sorted(first, key=lambda leak: leak.id)


@pytest.mark.parametrize("compare_all", [0, 10**9])
def test_no_more_pairs_of_a_template_are_compared_than_needed(
    monkeypatch: pytest.MonkeyPatch, compare_all: int
) -> None:
    monkeypatch.setattr(leaks, "_COMPARE_ALL", compare_all)
    compared = []
    jaccard = leaks.jaccard
    monkeypatch.setattr(leaks, "jaccard", lambda a, b: compared.append(1) or jaccard(a, b))
    text = "Write a polite and warm greeting for a guest about the topic number {}, and close it well."
    left = prompts("a", [text.format(i) for i in range(20)])
    right = prompts("b", [text.format(1000 + i) for i in range(500)])
    assert len(find_leaks(left, right, threshold=0.6, ngram=5)) == 20
    assert len(compared) == 20 * 64


def test_all_turns_but_the_system_prompt_are_compared() -> None:
    def conversation(id: str, *texts: str, system: str = "s") -> Prompt:
        turns = [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
        return Prompt(id, (Message("system", system), *turns))

    shared = "You are a careful assistant with many rules that are the same for everyone who asks anything."
    one = conversation("a", "How do I bake bread?", "With flour.", "Go on", system=shared)
    other = conversation("b", "Who was Ada Lovelace?", "A mathematician.", "Go on", system=shared)
    assert find_leaks([one], [other], threshold=0.5, ngram=5) == ()
    again = conversation("c", "How do I bake bread?", "With flour.", "Go on", system="another")
    assert find_leaks([one], [again], threshold=1.0, ngram=5)[0].same


@pytest.mark.parametrize("sets", [([], ["x"]), (["x"], []), ([], [])])
def test_empty_sets_have_no_leaks(sets: tuple[list[str], list[str]]) -> None:
    assert find_leaks(prompts("a", sets[0]), prompts("b", sets[1]), threshold=0.6, ngram=5) == ()


def test_a_leak_without_similarity_is_none() -> None:
    with pytest.raises(ValueError, match="similarity 0"):
        Leak("train", "a", "held_out", "b", 0.0, False)
