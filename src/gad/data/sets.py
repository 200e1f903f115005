"""The sets of a run: train, held out and out of distribution, kept apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from gad.config.data import DataConfig, HeldOutShare, LeakCheck, Source
from gad.data.leaks import Leak, find_leaks
from gad.data.loading import Dropped, LoadedSet, PromptSet, load_examples, load_prompts
from gad.data.prompts import has_replies
from gad.data.rows import tidy
from gad.errors import DataError

_SHOWN = 5
_Set = TypeVar("_Set", LoadedSet, PromptSet)


@dataclass(frozen=True, slots=True)
class DataSets(Generic[_Set]):
    """What a run trains on and is measured on. `leaks` are those that were found, whatever was done about them."""

    train: _Set
    held_out: _Set
    out_of_distribution: _Set | None
    leaks: tuple[Leak, ...]

    @property
    def named(self) -> dict[str, _Set]:
        """The sets by name, the training set first."""
        sets = {"train": self.train, "held_out": self.held_out}
        return sets if self.out_of_distribution is None else {**sets, "out_of_distribution": self.out_of_distribution}


@dataclass(frozen=True, slots=True)
class AskedSets:
    """The prompts of a run with a teacher to ask. `answered`: sets that brought replies of their own, by name."""

    sets: DataSets[PromptSet]
    answered: dict[str, LoadedSet]


def load_data(config: DataConfig, seed: int) -> DataSets[LoadedSet]:
    """Read, split and check the sets of a run. The same data and seed give the same sets.

    Raises DataError as load_examples does, for a split that leaves a set empty, and for leaks with `action: stop`.
    """
    train = load_examples(config.train, on_bad_rows=config.on_bad_rows, filters=config.filters)
    if isinstance(config.held_out, HeldOutShare):
        train, held_out = split_held_out(train, config.held_out, seed)
    else:
        held_out = load_examples(config.held_out, on_bad_rows=config.on_bad_rows, filters=config.filters)
    far = config.out_of_distribution
    sets = DataSets(
        train,
        held_out,
        None if far is None else load_examples(far, on_bad_rows=config.on_bad_rows, filters=config.filters),
        (),
    )
    return sets if config.leak_check is None else _check(sets, config.leak_check)


def load_asked(config: DataConfig, seed: int) -> AskedSets:
    """As `load_data`, of prompts that are to be sent to a teacher: they need no replies, and leaks are found before
    anything is paid for.

    Replies in the training rows are not read. A held-out or out-of-distribution source whose first row has a reply
    keeps its replies, and is not asked for.
    """
    answered: dict[str, LoadedSet] = {}

    def read(name: str, source: Source) -> PromptSet:
        if not has_replies(source):
            return load_prompts(source, on_bad_rows=config.on_bad_rows, filters=config.filters)
        answered[name] = load_examples(source, on_bad_rows=config.on_bad_rows, filters=config.filters)
        return PromptSet(answered[name].prompts, answered[name].origin)

    train = load_prompts(config.train, on_bad_rows=config.on_bad_rows, filters=config.filters)
    if isinstance(config.held_out, HeldOutShare):
        train, held_out = split_held_out(train, config.held_out, seed)
    else:
        held_out = read("held_out", config.held_out)
    far = config.out_of_distribution
    sets = DataSets(train, held_out, None if far is None else read("out_of_distribution", far), ())
    if config.leak_check is not None:
        sets = _check(sets, config.leak_check)
    kept = {name: answered[name].only({prompt.id for prompt in sets.named[name].prompts}) for name in answered}
    return AskedSets(sets, {name: loaded.of(sets.named[name].origin) for name, loaded in kept.items()})


def held_out_ids(ids: Sequence[str], share: HeldOutShare, seed: int) -> frozenset[str]:
    """The ids that are split off: those whose hash with the seed is lowest, or below the fraction."""
    places = {id_: _place(id_, seed) for id_ in ids}
    if share.fraction is not None:
        return frozenset(id_ for id_, place in places.items() if place < share.fraction)
    return frozenset(sorted(places, key=lambda id_: (places[id_], id_))[: share.count])


def split_held_out(loaded: _Set, share: HeldOutShare, seed: int) -> tuple[_Set, _Set]:
    """The set without its share, and the share. Raises DataError where either is empty."""
    everyone = [prompt.id for prompt in loaded.prompts]
    apart = held_out_ids(everyone, share, seed)
    if not 0 < len(apart) < len(everyone):
        size = f"fraction {share.fraction}" if share.fraction is not None else f"count {share.count}"
        raise DataError(
            f"{loaded.origin.source}: a held-out share of {size} takes {len(apart)} of {len(everyone)} prompts;"
            " both sets need some: give another share, or a `held_out` source"
        )
    rest, held_out = loaded.only(frozenset(everyone) - apart), loaded.only(apart)
    label = f"{loaded.origin.source} (held-out share)"
    return (
        rest.of(replace(rest.origin, split_off=len(apart))),
        held_out.of(replace(held_out.origin, source=label, rows=held_out.size, dropped=(), renamed=0)),
    )


def _place(id_: str, seed: int) -> float:
    """Where an id falls in [0, 1), evenly and for good."""
    digest = hashlib.sha256(f"held out\0{seed}\0{id_}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _check(sets: DataSets[_Set], check: LeakCheck) -> DataSets[_Set]:
    def search(prompts: _Set, others: _Set, names: tuple[str, str]) -> tuple[Leak, ...]:
        return find_leaks(prompts.prompts, others.prompts, threshold=check.threshold, ngram=check.ngram, sets=names)

    far = sets.out_of_distribution
    leaks = search(sets.train, sets.held_out, ("train", "held_out"))
    if far is not None:
        leaks += search(sets.train, far, ("train", "out_of_distribution"))
        leaks += search(far, sets.held_out, ("out_of_distribution", "held_out"))
    found = replace(sets, leaks=leaks)
    match check.action:
        case "report":
            return found
        case "drop":
            return replace(
                found,
                train=_without(sets.train, [leak for leak in leaks if leak.set == "train"]),
                out_of_distribution=None
                if far is None
                else _without(far, [leak for leak in leaks if leak.set == "out_of_distribution"]),
            )
        case "stop":
            if leaks:
                shown = "; ".join(map(_described, leaks[:_SHOWN]))
                raise DataError(
                    f"{len(leaks)} prompts are in two sets, or nearly: {shown}."
                    " Remove them, or set `data.leak_check.action` to drop or report"
                )
            return found


def _described(leak: Leak) -> str:
    return f"{leak.set} {tidy(leak.id)} ~ {leak.other_set} {tidy(leak.other_id)} ({leak.similarity:.2f})"


def _without(loaded: _Set, leaks: Iterable[Leak]) -> _Set:
    by_other: dict[str, dict[str, Leak]] = {}
    for leak in leaks:
        by_other.setdefault(leak.other_set, {})[leak.id] = leak
    gone: set[str] = set()
    dropped: list[Dropped] = []
    for other_set, found in by_other.items():
        new = [leak for id_, leak in found.items() if id_ not in gone]
        gone.update(leak.id for leak in new)
        if new:
            first = tuple(map(_described, new[:_SHOWN]))
            dropped.append(Dropped(f"prompt nearly in {other_set}", len(new), first))
    rest = loaded.only({prompt.id for prompt in loaded.prompts} - gone)
    if not rest.prompts:
        raise DataError(f"{loaded.origin.source}: every prompt is nearly one of another set ({dropped[0].first[0]})")
    return rest.of(replace(rest.origin, dropped=(*loaded.origin.dropped, *dropped)))
