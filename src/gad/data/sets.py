"""The sets of a run: train, held out and out of distribution, kept apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gad.config.data import DataConfig, HeldOutShare, LeakCheck
from gad.data.leaks import Leak, find_leaks
from gad.data.loading import Dropped, LoadedSet, fingerprint, load_examples
from gad.data.rows import tidy
from gad.errors import DataError

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class DataSets:
    """What a run trains on and is measured on. `leaks` are those that were found, whatever was done about them."""

    train: LoadedSet
    held_out: LoadedSet
    out_of_distribution: LoadedSet | None
    leaks: tuple[Leak, ...]


def load_data(config: DataConfig, seed: int) -> DataSets:
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


def held_out_ids(ids: Sequence[str], share: HeldOutShare, seed: int) -> frozenset[str]:
    """The ids that are split off: those whose hash with the seed is lowest, or below the fraction."""
    places = {id_: _place(id_, seed) for id_ in ids}
    if share.fraction is not None:
        return frozenset(id_ for id_, place in places.items() if place < share.fraction)
    return frozenset(sorted(places, key=lambda id_: (places[id_], id_))[: share.count])


def split_held_out(loaded: LoadedSet, share: HeldOutShare, seed: int) -> tuple[LoadedSet, LoadedSet]:
    """The set without its share, and the share. Raises DataError where either is empty."""
    everyone = [prompt.id for prompt in loaded.prompts]
    apart = held_out_ids(everyone, share, seed)
    if not 0 < len(apart) < len(everyone):
        size = f"fraction {share.fraction}" if share.fraction is not None else f"count {share.count}"
        raise DataError(
            f"{loaded.origin.source}: a held-out share of {size} takes {len(apart)} of {len(everyone)} prompts;"
            " both sets need some: give another share, or a `held_out` source"
        )
    rest = tuple(example for example in loaded.examples if example.prompt.id not in apart)
    share_of_it = loaded.keeping(apart)
    origin = replace(loaded.origin, sha256=fingerprint(rest), split_off=len(apart))
    held_out = replace(
        loaded.origin,
        source=f"{loaded.origin.source} (held-out share)",
        rows=sum(len(example.replies) for example in share_of_it),
        dropped=(),
        renamed=0,
        sha256=fingerprint(share_of_it),
    )
    return LoadedSet(rest, origin), LoadedSet(share_of_it, held_out)


def _place(id_: str, seed: int) -> float:
    """Where an id falls in [0, 1), evenly and for good."""
    digest = hashlib.sha256(f"held out\0{seed}\0{id_}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _check(sets: DataSets, check: LeakCheck) -> DataSets:
    def search(prompts: LoadedSet, others: LoadedSet, names: tuple[str, str]) -> tuple[Leak, ...]:
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


def _without(loaded: LoadedSet, leaks: Iterable[Leak]) -> LoadedSet:
    by_other: dict[str, dict[str, Leak]] = {}
    for leak in leaks:
        by_other.setdefault(leak.other_set, {})[leak.id] = leak
    gone: set[str] = set()
    dropped = []
    for other_set, found in by_other.items():
        new = [leak for id_, leak in found.items() if id_ not in gone]
        gone.update(leak.id for leak in new)
        if new:
            first = tuple(map(_described, new[:_SHOWN]))
            dropped.append(Dropped(f"prompt nearly in {other_set}", len(new), first))
    rest = tuple(example for example in loaded.examples if example.prompt.id not in gone)
    if not rest:
        raise DataError(f"{loaded.origin.source}: every prompt is nearly one of another set ({dropped[0].first[0]})")
    origin = replace(loaded.origin, dropped=(*loaded.origin.dropped, *dropped), sha256=fingerprint(rest))
    return LoadedSet(rest, origin)
