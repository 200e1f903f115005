"""Judge pairs of models on disk: replies in, a file of verdicts a pair out, figures of each. Needs no torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from gad.config.judging import JudgeApi, JudgeConfig, JudgingConfig, Pair, PairwiseJudge, PaperJudge
from gad.errors import RunFolderError
from gad.judging.asking import Respondent
from gad.judging.pairwise import RUBRIC, PairwiseComparison
from gad.judging.paper import ReferenceScoring
from gad.judging.preference import (
    length_controlled_preference,
    position_bias,
    preferences_by_prompt,
    win_rate,
)
from gad.judging.statistics import detectable_points, prompts_needed
from gad.judging.tables import Cell, agreement_table, paired_table
from gad.judging.verdicts import REFERENCE, Case, Judge, verdict_of
from gad.progress import Progress
from gad.records import GeneratedReply, Prompt, Verdict
from gad.seeds import stable_seed
from gad.signals import StopRequest
from gad.storage import JsonlWriter, Row, keep_rows, read_jsonl, write_json

VERDICTS = "verdicts"
REFERENCES = "references"
LEDGERS = "judges"
FIGURES = "judging.json"

Replies = Mapping[str, GeneratedReply]
MakeRespondent = Callable[[JudgeApi, Path, StopRequest], Respondent]
"""From a model's config, the folder of its ledger, and the stop to heed."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models' replies to the prompts of one set, by prompt id."""

    first: str
    second: str
    set_name: str
    prompts: tuple[Prompt, ...]
    replies: Replies
    other_replies: Replies

    def __post_init__(self) -> None:
        for name, replies in ((self.first, self.replies), (self.second, self.other_replies)):
            missing = [prompt.id for prompt in self.prompts if prompt.id not in replies]
            if missing:
                raise RunFolderError(
                    f"{name} has no reply to {len(missing)} of {len(self.prompts)} prompts of {self.set_name}, "
                    f"e.g. {missing[0]}: run `gad generate` to write them"
                )


def pairs_of(config: JudgingConfig, students: Sequence[str]) -> tuple[Pair, ...]:
    """The config's pairs, or the last student against the teacher and against each other student."""
    if config.pairs:
        return config.pairs
    last = students[-1]
    return (Pair(first=last), *(Pair(first=last, second=other) for other in students[:-1]))


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
) -> dict[str, Any]:
    """Every judge on every comparison; writes `judging.json` and returns it. What was judged before is kept.

    What the prompts at hand can show is said before the first question is asked.
    """
    for size in sorted({len(comparison.prompts) for comparison in comparisons}):
        progress.say(power_note(size))
    judges = [build_judge(settings, folder, stop, respondent) for settings in config.judges]
    figures = []
    preferences: dict[Cell, dict[str, float]] = {}
    for judge in judges:
        for comparison in _for_judge(judge, comparisons):
            rows = judge_comparison(folder, judge, comparison, progress=progress, stop=stop)
            figures.append(figures_of(judge, comparison, rows, seed=seed))
            cell = Cell(judge.name, comparison.set_name, comparison.first, comparison.second)
            preferences[cell] = preferences_by_prompt(_verdicts(rows))
    references = [row["cost_usd"] for judge in judges for row in read_jsonl(references_path(folder, judge.name))]
    cost = sum(references) + sum(figure["cost_usd"] for figure in figures)
    tables = {"paired": paired_table(preferences, seed=seed), "agreement": agreement_table(preferences, seed=seed)}
    result = {"format": 1, "figures": figures, **tables, "references": len(references), "cost_usd": cost}
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
    title = f"{judge.name}: {comparison.first} against {comparison.second}, {comparison.set_name}"
    head = {"judge": judge.name, "first": comparison.first, "second": comparison.second, "set": comparison.set_name}
    with JsonlWriter(path, durable=True) as writer, progress.task(title, len(cases), len(cases) - len(missing)) as task:
        for judgement in judge.judge(missing) if missing else ():
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            identity = {"sha256": digests[judgement.case.key], "identity": judge.identity, "created": when}
            writer.append({**head, **judgement.as_dict(), **identity})
            task.advance()
            stop.check()
    return [row for row in read_jsonl(path) if row["sha256"] in wanted]


def figures_of(judge: Judge, comparison: Comparison, rows: Sequence[Row], *, seed: int) -> dict[str, Any]:
    """What the verdicts add up to. Rows without a verdict are counted by their problem and enter no figure."""
    verdicts = _verdicts(rows)
    seed = stable_seed(seed, "judging", judge.name, comparison.first, comparison.second, comparison.set_name)
    figures: dict[str, Any] = {
        "judge": judge.name,
        "first": comparison.first,
        "second": comparison.second,
        "set": comparison.set_name,
        "verdicts": len(rows),
        "unread": dict(Counter(row["problem"] for row in rows if row["preference"] is None)),
        "asked_again": sum(row["attempts"] > 1 for row in rows),
        "by": dict(Counter(row["by"] for row in rows if row["preference"] is not None)),
        "cost_usd": sum(row["cost_usd"] for row in rows),
        "win_rate": None,
        "score": None,
        "position_bias": None,
        "length_controlled": None,
        "too_few": True,
    }
    if not verdicts:
        return figures
    rate = win_rate(verdicts, seed=seed)
    bias = position_bias(verdicts, seed=seed)
    figures |= {"win_rate": rate.as_dict(), "position_bias": bias.as_dict() if bias else None}
    figures["too_few"] = rate.preference.too_few
    if judge.writes_reference:
        figures["score"] = rate.preference.scaled(100.0).as_dict()
    else:
        lengths = {key: float(reply.tokens) for key, reply in comparison.replies.items()}
        others = {key: float(reply.tokens) for key, reply in comparison.other_replies.items()}
        controlled = length_controlled_preference(preferences_by_prompt(verdicts), lengths, others, seed=seed)
        figures["length_controlled"] = controlled.as_dict()
    return figures


def power_note(prompts: int) -> str:
    """What so many prompts can show, in a sentence."""
    return (
        f"{prompts} prompts show a difference of {detectable_points(prompts):.1f} points or more from 50 four times in "
        f"five; one of 5 points takes {prompts_needed(5.0)}"
    )


def verdicts_path(folder: Path, judge: str, comparison: Comparison) -> Path:
    """`verdicts/<judge>/<first>-vs-<second>@<set>.jsonl`."""
    name = f"{comparison.first}-vs-{comparison.second}@{comparison.set_name}.jsonl"
    return folder / VERDICTS / judge / name


def references_path(folder: Path, judge: str) -> Path:
    """`references/<judge>.jsonl`: the replies that a judge wrote to compare with."""
    return folder / REFERENCES / f"{judge}.jsonl"


def _for_judge(judge: Judge, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """A judge with its own reference sees each model once a set, against the reference."""
    if not judge.writes_reference:
        return list(comparisons)
    single: dict[tuple[str, str], Comparison] = {}
    for each in comparisons:
        for name, replies in ((each.first, each.replies), (each.second, each.other_replies)):
            alone = Comparison(name, REFERENCE, each.set_name, each.prompts, replies, replies)
            single.setdefault((name, each.set_name), alone)
    return list(single.values())


def _second(judge: Judge, comparison: Comparison, prompt: Prompt) -> str | None:
    return None if judge.writes_reference else comparison.other_replies[prompt.id].completion


def _verdicts(rows: Sequence[Row]) -> list[Verdict]:
    return [verdict for row in rows if (verdict := verdict_of(row)) is not None]


def _replies(path: Path, model: str) -> dict[str, GeneratedReply]:
    if not path.exists():
        raise RunFolderError(f"{model} has no replies in {path}: run `gad generate` to write them")
    return {row["id"]: GeneratedReply.from_dict(row) for row in read_jsonl(path)}


def _endpoint(config: JudgeApi, folder: Path, stop: StopRequest) -> Respondent:
    from gad.judging.endpoint import EndpointRespondent

    return EndpointRespondent(config, folder, stop)
