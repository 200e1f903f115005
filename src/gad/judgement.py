"""Judging of a run: every pair of models on every set, by every judge; what people and classifiers say beside it.

Needs no torch: it reads what `generate` wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gad.arena.results import independent_discriminator, people
from gad.config.compared import REFERENCE, TEACHER
from gad.config.run import RunConfig
from gad.errors import ConfigError, RunFolderError, TeacherError
from gad.judging.comparison import Comparison
from gad.judging.planning import pairs_of
from gad.judging.tables import Cell
from gad.judging.twosample import MIN_PROMPTS, two_sample
from gad.progress import Progress
from gad.records import GeneratedReply, Message, Prompt
from gad.report.gather import gather
from gad.seeds import stable_seed
from gad.signals import StopRequest
from gad.stages.collect import set_paths
from gad.stages.judge_api import MakeRespondent, judge_all, read_comparison
from gad.stages.judged_figures import refresh
from gad.stages.judged_sets import JudgedSet, recorded
from gad.stages.replies import read_replies, replies_path
from gad.storage import read_jsonl
from gad.teacher.progress import usd

PEOPLE = "people (arena)"
C2ST = "C2ST classifier"
DISCRIMINATOR = "independent discriminator"
"""No judge of the run file can have these names: a space is none of a name's characters."""


def judge(
    config: RunConfig,
    folder: Path,
    progress: Progress,
    stop: StopRequest,
    respondent: MakeRespondent | None = None,
) -> dict[str, Any]:
    """Write `verdicts/`, `judging.json` and the judges' part of `summary.json`. What was judged before is kept.

    Raises ConfigError without `judging:`, RunFolderError where replies are missing, TeacherError where the endpoint
    fails for good or none of a judge's answers is a verdict.
    """
    settings = config.judging
    if settings is None:
        raise ConfigError("the run file has no judging: add the section `judging:`, or leave this stage out")
    sets = list(_sets(config, folder))
    if not sets:
        raise RunFolderError(f"{folder} holds no sets and no replies yet: run `gad generate` first, or `gad run`")
    comparisons = [each for judged in sets for each in _comparisons(config, folder, judged, progress)]
    result = judge_all(
        settings,
        folder,
        comparisons,
        seed=config.seed,
        level=config.evaluation.confidence,
        progress=progress,
        stop=stop,
        respondent=respondent,
        voices=_voices(config, folder, comparisons),
        sets=[judged.info for judged in sets if judged.info],
    )
    refresh(folder / "summary.json")
    _say(result, progress)
    return result


def _sets(config: RunConfig, folder: Path) -> Iterator[JudgedSet]:
    """The run's own sets, which the summary knows already, then those of `judging.sets`."""
    for name, path in set_paths(folder).items():
        prompts = {row["id"]: row["prompt"] for row in read_jsonl(path)}
        turns = {key: tuple(Message(turn["role"], turn["content"]) for turn in said) for key, said in prompts.items()}
        yield JudgedSet(name, tuple(Prompt(key, said) for key, said in turns.items()), {})
    yield from recorded(config, folder)


def _comparisons(config: RunConfig, folder: Path, judged: JudgedSet, progress: Progress) -> Iterator[Comparison]:
    """Every pair on one set. Prompts that no model has replied to (longer than the model takes) are none of it."""
    assert config.judging is not None
    pairs = pairs_of(config.judging, config.students)
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))
    replied = {key for name in names for key in _replies(folder, name, judged.name)}
    prompts = [prompt for prompt in judged.prompts if prompt.id in replied][: config.judging.max_prompts]
    if not prompts:
        raise RunFolderError(f"no model has replies to {judged.name} in {folder}: run `gad generate` to write them")
    bought = any(model.name == TEACHER for model in config.evaluation.models)
    without_teacher = bool(judged.info) and not bought
    if without_teacher and TEACHER in names:
        progress.say(
            f"{judged.name}: the set comes without the teacher's replies, so nobody is compared with it there; "
            "evaluation.models can have them written, by the run's teacher (kind: teacher) or an endpoint of that name"
        )
    for pair in pairs:
        if without_teacher and TEACHER in (pair.first, pair.second):
            name = pair.second if pair.first == TEACHER else pair.first
            alone = _replies(folder, name, judged.name)
            yield Comparison(name, REFERENCE, judged.name, tuple(prompts), alone, alone)
        else:
            yield read_comparison(folder, pair, judged.name, prompts)


def _replies(folder: Path, name: str, set_name: str) -> dict[str, GeneratedReply]:
    return read_replies(replies_path(folder, name, set_name, "", ""))


def _voices(config: RunConfig, folder: Path, comparisons: Sequence[Comparison]) -> dict[Cell, dict[str, float]]:
    """What people in the arena, the independent discriminator and a two-sample classifier prefer of these pairs."""
    run = gather(folder)
    voices: dict[Cell, dict[str, float]] = {}
    for each in comparisons:
        for name, said in ((PEOPLE, people(run)), (DISCRIMINATOR, independent_discriminator(run))):
            found = _of_pair(said, each)
            if found:
                voices[Cell(name, each.set_name, each.first, each.second)] = found
        if TEACHER in (each.first, each.second) and len(each.prompts) >= MIN_PROMPTS:
            voices[Cell(C2ST, each.set_name, each.first, each.second)] = _teacher_likeness(config, each)
    return voices


def _of_pair(said: Mapping[tuple[str, str, str, str], float], pair: Comparison) -> dict[str, float]:
    found = {}
    for prompt in pair.prompts:
        as_asked = said.get((pair.first, pair.second, pair.set_name, prompt.id))
        turned = said.get((pair.second, pair.first, pair.set_name, prompt.id))
        if as_asked is not None or turned is not None:
            found[prompt.id] = as_asked if as_asked is not None else 1.0 - (turned or 0.0)
    return found


def _teacher_likeness(config: RunConfig, pair: Comparison) -> dict[str, float]:
    """Which reply looks more like the teacher's, for the first of the pair."""
    teacher_first = pair.first == TEACHER
    sides = (pair.replies, pair.other_replies) if teacher_first else (pair.other_replies, pair.replies)
    teacher, student = ({p.id: side[p.id].completion for p in pair.prompts} for side in sides)
    found = two_sample(teacher, student, seed=stable_seed(config.seed, "c2st", pair.set_name)).teacher_likeness
    return {str(key): 1.0 - value if teacher_first else value for key, value in found.items()}


def _say(result: Mapping[str, Any], progress: Progress) -> None:
    """How many verdicts there are, how they were read, and which answers were none.

    Raises TeacherError for a judge that gave none at all.
    """
    for name in dict.fromkeys(row["judge"] for row in result["figures"]):
        rows = [row for row in result["figures"] if row["judge"] == name]
        asked, spent = sum(row["verdicts"] for row in rows), sum(row["cost_usd"] for row in rows)
        unread, by = Counter[str](), Counter[str]()
        for row in rows:
            unread.update(row["unread"])
            by.update(row["by"])
        problems = ", ".join(f"{count} {problem}" for problem, count in unread.most_common(3))
        if asked and not by:
            raise TeacherError(
                f"judge {name} gave no verdict on any of {asked} questions ({problems}); its answers are in verdicts/"
                f"{name}/. Take another model or rubric and run `gad judge` again"
            )
        read = ", ".join(
            f"{count} by {'odds' if how == 'probability' else 'letter or scores'}" for how, count in by.items()
        )
        none = f"; {unread.total()} answers are no verdict and enter no figure ({problems})" if unread else ""
        progress.say(f"{name}: {by.total()} verdicts, {read}, {usd(spent)}{none}")
