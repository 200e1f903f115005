"""What the votes add up to: win rates by prompt, and how far raters agree with each other and with the machine."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gad.arena.comparisons import fingerprint
from gad.arena.votes import ARENA, VOTES, Vote, read_votes, standing
from gad.report.gather import TEACHER, Gathered, ReplyKey, gather

if TYPE_CHECKING:
    from gad.judging.statistics import Agreement, Estimate

SEED = 0
Matter = tuple[str, str, str, str]
"""First arm, second arm, set and prompt id: what a preference is about."""


@dataclass(frozen=True, slots=True)
class PairResult:
    """One pair on one set. `preference`: how often raters prefer `first`, ties half; None where all were skipped."""

    first: str
    second: str
    set: str
    preference: Estimate | None
    wins: int
    losses: int
    ties: int
    both_bad: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Pairwise:
    """How far two voices agree on the pairs both judged."""

    one: str
    other: str
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Results:
    """Everything the results page shows. `foreign`: votes on replies that the run no longer has."""

    name: str
    pairs: tuple[PairResult, ...]
    raters: Mapping[str, int]
    agreements: tuple[Pairwise, ...]
    foreign: int


def results(run_folder: Path) -> Results:
    """Add up the votes of a run folder. Raises RunFolderError where it, or the votes file, is damaged."""
    return add_up(gather(run_folder))


def add_up(run: Gathered) -> Results:
    """As `results`, of a run that was read already."""
    rows = list(read_votes(run.folder / ARENA / VOTES))
    votes = list(standing(rows, fingerprint(run)).values())
    counts: dict[str, int] = {}
    for vote in votes:
        counts[vote.rater] = counts.get(vote.rater, 0) + 1
    everywhere = sum(len(standing(rows, other)) for other in {row.run for row in rows if isinstance(row, Vote)})
    pairs = tuple(_pair_result(key, group) for key, group in sorted(_by_pair(run, votes).items()))
    return Results(run.name, pairs, counts, tuple(_agreements(run, votes)), everywhere - len(votes))


def _by_pair(run: Gathered, votes: Iterable[Vote]) -> dict[tuple[str, str, str], list[Vote]]:
    groups: dict[tuple[str, str, str], list[Vote]] = {}
    for vote in votes:
        groups.setdefault((*_ordered(run, vote.left, vote.right), vote.set), []).append(vote)
    return groups


def _ordered(run: Gathered, one: str, other: str) -> tuple[str, str]:
    """The headline arm first, the teacher last."""
    order = [run.headline, *run.students, TEACHER]
    first, second = sorted((one, other), key=lambda name: (order.index(name) if name in order else len(order), name))
    return first, second


def _pair_result(key: tuple[str, str, str], votes: Sequence[Vote]) -> PairResult:
    from gad.judging.statistics import bootstrap_mean

    first, second, set_name = key
    by_prompt: dict[str, list[float]] = {}
    for vote in votes:
        preference = vote.preference(first)
        if preference is not None:
            by_prompt.setdefault(vote.prompt_id, []).append(preference)
    said = [vote.preference(first) for vote in votes]
    choices = [vote.choice for vote in votes]
    return PairResult(
        first=first,
        second=second,
        set=set_name,
        preference=bootstrap_mean(list(by_prompt.values()), seed=SEED) if by_prompt else None,
        wins=said.count(1.0),
        losses=said.count(0.0),
        ties=choices.count("tie"),
        both_bad=choices.count("both_bad"),
        skipped=choices.count("skip"),
    )


def people(run: Gathered) -> dict[Matter, float]:
    """Mean preference of the raters who did not skip, by pair, set and prompt; headline arm first, teacher last."""
    collected: dict[Matter, list[float]] = {}
    rows = read_votes(run.folder / ARENA / VOTES)
    for said in _voices(run, standing(rows, fingerprint(run)).values()).values():
        for matter, preference in said.items():
            collected.setdefault(matter, []).append(preference)
    return {matter: sum(values) / len(values) for matter, values in collected.items()}


def independent_discriminator(run: Gathered) -> dict[Matter, float]:
    """Whether the evaluation's discriminator puts a student's reply above the teacher's, as `people`."""
    decoding = run.decodings[0].name if run.decodings else None
    said: dict[Matter, float] = {}
    for info in run.sets:
        for student in run.students:
            for id, margin in run.margins.get(ReplyKey(student, info.name, decoding), {}).items():
                said[student, TEACHER, info.name, id] = 0.5 + 0.5 * ((margin > 0) - (margin < 0))
    return said


def _voices(run: Gathered, votes: Iterable[Vote]) -> dict[str, dict[Matter, float]]:
    """What every rater said."""
    voices: dict[str, dict[Matter, float]] = {}
    for vote in votes:
        first, second = _ordered(run, vote.left, vote.right)
        preference = vote.preference(first)
        if preference is not None:
            voices.setdefault(vote.rater, {})[first, second, vote.set, vote.prompt_id] = preference
    return voices


def _agreements(run: Gathered, votes: Sequence[Vote]) -> Iterable[Pairwise]:
    """Every two raters, then every rater with the independent discriminator and with every judge."""
    from gad.judging.statistics import agreement

    voices = _voices(run, votes)
    raters = sorted(voices)
    machine = independent_discriminator(run)
    machines = ({"independent discriminator": machine} if machine else {}) | _judges(run)
    pairs = [(one, other) for index, one in enumerate(raters) for other in raters[index + 1 :]]
    for one, other, known in [
        *((one, other, voices[other]) for one, other in pairs),
        *((rater, name, said) for name, said in machines.items() for rater in raters),
    ]:
        if voices[one].keys() & known.keys():
            yield Pairwise(one, other, agreement(_keyed(voices[one]), _keyed(known), seed=SEED))


def _keyed(said: Mapping[Matter, float]) -> dict[Hashable, float]:
    return {key: value for key, value in said.items()}  # noqa: C416 - dict() would keep the narrower key type


def _judges(run: Gathered) -> dict[str, dict[Matter, float]]:
    collected: dict[str, dict[Matter, list[float]]] = {}
    for verdict in run.judgements:
        if verdict.preference is not None and verdict.set is not None:
            first, second = _ordered(run, verdict.first, verdict.second)
            preference = verdict.preference if first == verdict.first else 1.0 - verdict.preference
            key = (first, second, verdict.set, verdict.prompt_id)
            collected.setdefault(f"judge {verdict.judge}", {}).setdefault(key, []).append(preference)
    return {judge: {key: sum(v) / len(v) for key, v in said.items()} for judge, said in collected.items()}
