"""Judge pairs of models on disk: replies in, a file of verdicts a pair out, figures of each. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

from gad.config.compared import REFERENCE
from gad.config.judging import JudgeApi, JudgeConfig, JudgingConfig, Pair, PairwiseJudge, PaperJudge
from gad.errors import RunFolderError
from gad.judging.asking import Respondent
from gad.judging.comparison import Comparison, compared_by_score, figures_of, verdicts_of
from gad.judging.forecast import Workload, announcement
from gad.judging.pairwise import RUBRIC, PairwiseComparison
from gad.judging.paper import ReferenceScoring
from gad.judging.preference import preferences_by_prompt
from gad.judging.tables import Cell, Preferences, agreement_table, paired_table
from gad.judging.verdicts import Case, Judge
from gad.progress import Progress
from gad.records import GeneratedReply, Prompt
from gad.signals import StopRequest
from gad.storage import JsonlWriter, Row, keep_rows, read_jsonl, write_json
from gad.teacher.money import usual_tokens
from gad.teacher.progress import usd

VERDICTS = "verdicts"
REFERENCES = "references"
LEDGERS = "judges"
FIGURES = "judging.json"

MakeRespondent = Callable[[JudgeApi, Path, StopRequest], Respondent]
"""From a model's config, the folder of its ledger, and the stop to heed."""


def read_comparison(
    folder: Path, pair: Pair, set_name: str, prompts: Sequence[Prompt], *, max_prompts: int | None = None
) -> Comparison:
    """From `replies/<model>/<set>.jsonl`. Raises RunFolderError where a model or a reply is missing."""
    chosen = tuple(prompts[:max_prompts])
    ours, theirs = (
        _replies(folder / "replies" / name / f"{set_name}.jsonl", name) for name in (pair.first, pair.second)
    )
    return Comparison(pair.first, pair.second, set_name, chosen, ours, theirs)


def build_judge(
    config: JudgeConfig, folder: Path, stop: StopRequest, respondent: MakeRespondent | None = None
) -> Judge:
    """The judge that a config names; its ledger lies in `judges/<name>/`. `respondent` makes what answers."""
    answering = (respondent or _endpoint)(config.api, folder / LEDGERS / config.name, stop)
    match config:
        case PaperJudge():
            return ReferenceScoring(
                config.name,
                config.api.model,
                answering,
                references_path(folder, config.name),
                config.max_reference_tokens,
                config.max_verdict_tokens,
            )
        case PairwiseJudge():
            return PairwiseComparison(
                config.name,
                config.api.model,
                answering,
                config.max_verdict_tokens,
                config.rubric or RUBRIC,
                both_orders=config.orders == "both",
                probabilities=config.verdict == "auto",
            )
        case _:
            assert_never(config)


def judge_all(
    config: JudgingConfig,
    folder: Path,
    comparisons: Sequence[Comparison],
    *,
    seed: int,
    progress: Progress,
    stop: StopRequest,
    respondent: MakeRespondent | None = None,
    voices: Preferences | None = None,
    sets: Sequence[Mapping[str, Any]] = (),
    level: float = 0.95,
) -> dict[str, Any]:
    """Every judge on every comparison; writes `judging.json` and returns it. What was judged before is kept.

    What the prompts at hand can show, and what it may cost, is said before the first question is asked.
    voices: what people and classifiers prefer; they enter the table of agreement. sets: what is said of sets beside the
    run's own. level: of the intervals.
    """
    for what, line in announcement(config, workloads(comparisons)):
        progress.say(f"{what}: {line}")
    judges = [build_judge(settings, folder, stop, respondent) for settings in config.judges]
    figures = []
    preferences: dict[Cell, dict[str, float]] = {}
    for judge in judges:
        for comparison in _for_judge(judge, comparisons):
            rows = judge_comparison(folder, judge, comparison, progress=progress, stop=stop)
            figures.append(figures_of(judge, comparison, rows, seed=seed, level=level))
            cell = Cell(judge.name, comparison.set_name, comparison.first, comparison.second)
            preferences[cell] = preferences_by_prompt(verdicts_of(rows))
    references = [row["cost_usd"] for judge in judges for row in read_jsonl(references_path(folder, judge.name))]
    cost = sum(references) + sum(figure["cost_usd"] for figure in figures)
    everyone = {**compared_by_score(preferences, comparisons), **(voices or {})}
    tables = {
        "paired": paired_table(preferences, seed=seed, level=level),
        "agreement": agreement_table(everyone, seed=seed, level=level),
    }
    described = [{**info, "judged": True, "overlaps_training": bool(info["overlap"])} for info in sets]
    result = {
        "format": 1,
        "figures": figures,
        **tables,
        "sets": described,
        "references": len(references),
        "cost_usd": cost,
    }
    write_json(folder / FIGURES, result)
    return result


def judge_comparison(
    folder: Path, judge: Judge, comparison: Comparison, *, progress: Progress, stop: StopRequest
) -> list[Row]:
    """Verdicts of one judge on one comparison: those on disk, and those that were missing, appended as they come.

    A verdict on other replies, or by another model or wording, is out of date and made again; so is a question that
    the endpoint gave no answer to. Rows of prompts that are not asked now stay in the file.
    """
    cases = [
        Case(prompt, comparison.replies[prompt.id].completion, _second(judge, comparison, prompt), order)
        for prompt in comparison.prompts
        for order in judge.orders(prompt.id)
    ]
    digests = {case.key: case.sha256(judge.identity) for case in cases}
    path = verdicts_path(folder, judge.name, comparison)
    asked = {prompt.id for prompt in comparison.prompts}
    wanted = set(digests.values())
    stale = keep_rows(path, lambda row: row["prompt_id"] not in asked or (row["sha256"] in wanted and row["final"]))
    if stale:
        progress.say(f"{path.name}: {stale} verdicts were out of date or without an answer and are asked for again")
    have = {row["sha256"] for row in read_jsonl(path)}
    missing = [case for case in cases if digests[case.key] not in have]
    spent = 0.0
    title = f"{judge.name}: {comparison.first} against {comparison.second}, {comparison.set_name}"
    head = {"judge": judge.name, "first": comparison.first, "second": comparison.second, "set": comparison.set_name}
    with JsonlWriter(path, durable=True) as writer, progress.task(title, len(cases), len(cases) - len(missing)) as task:
        for judgement in judge.judge(missing) if missing else ():
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            identity = {"sha256": digests[judgement.case.key], "identity": judge.identity, "created": when}
            writer.append({**head, **judgement.as_dict(), **identity})
            spent += judgement.cost_usd
            task.advance(note=usd(spent))
            stop.check()
    return [row for row in read_jsonl(path) if row["sha256"] in wanted]


def workloads(comparisons: Sequence[Comparison]) -> list[Workload]:
    """The sets of these comparisons, with the lengths of the replies at hand."""
    found = []
    for name in dict.fromkeys(each.set_name for each in comparisons):
        ours = [each for each in comparisons if each.set_name == name]
        prompts = ours[0].prompts
        lengths = [
            r[prompt.id].tokens for each in ours for r in (each.replies, each.other_replies) for prompt in prompts
        ]
        asked = [usual_tokens(prompt.messages) for prompt in prompts]
        pairs = sum(each.second != REFERENCE for each in ours)
        models = len({model for each in ours for model in (each.first, each.second)} - {REFERENCE})
        size = max(1, len(prompts))
        reply = sum(lengths) / max(1, len(lengths))
        found.append(Workload(name, len(prompts), pairs, models, sum(asked) / size, reply))
    return found


def verdicts_path(folder: Path, judge: str, comparison: Comparison) -> Path:
    """`verdicts/<judge>/<first>-vs-<second>@<set>.jsonl`."""
    name = f"{comparison.first}-vs-{comparison.second}@{comparison.set_name}.jsonl"
    return folder / VERDICTS / judge / name


def references_path(folder: Path, judge: str) -> Path:
    """`references/<judge>.jsonl`: the replies that a judge wrote to compare with."""
    return folder / REFERENCES / f"{judge}.jsonl"


def _for_judge(judge: Judge, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """A judge with its own reference sees each model once a set, against the reference.

    A comparison with REFERENCE is for such judges only: the model's partner has no replies to that set.
    """
    if not judge.writes_reference:
        return [each for each in comparisons if each.second != REFERENCE]
    single: dict[tuple[str, str], Comparison] = {}
    for each in comparisons:
        for name, replies in ((each.first, each.replies), (each.second, each.other_replies)):
            if name == REFERENCE:
                continue
            alone = Comparison(name, REFERENCE, each.set_name, each.prompts, replies, replies)
            single.setdefault((name, each.set_name), alone)
    return list(single.values())


def _second(judge: Judge, comparison: Comparison, prompt: Prompt) -> str | None:
    return None if judge.writes_reference else comparison.other_replies[prompt.id].completion


def _replies(path: Path, model: str) -> dict[str, GeneratedReply]:
    if not path.exists():
        raise RunFolderError(f"{model} has no replies in {path}: run `gad generate` to write them")
    return {row["id"]: GeneratedReply.from_dict(row) for row in read_jsonl(path)}


def _endpoint(config: JudgeApi, folder: Path, stop: StopRequest) -> Respondent:
    from gad.judging.endpoint import EndpointRespondent

    return EndpointRespondent(config, folder, stop)
