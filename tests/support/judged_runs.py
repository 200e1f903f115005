"""A finished run with judges: scripted ones, everything else as in use."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from gad.config.judging import JudgeApi, JudgingConfig, Pair, PairwiseJudge, PaperJudge
from gad.judging.asking import Question
from gad.judging.tables import Cell
from gad.records import Prompt
from gad.stages.judge_api import judge_all, read_comparison
from gad.stages.judged_figures import refresh
from gad.storage import read_jsonl
from support.report_runs import SETS, write_run
from unit.judging.scripted import SHOWN, Scripted, Silent, going_on

STUDENTS = ("base", "seqkd", "qwen-3b", "gad")
API = JudgeApi(model="script")
PAIRS = [("gad", name) for name in ("teacher", "seqkd", "base", "qwen-3b")]
PAIRS += [(name, "teacher") for name in ("seqkd", "base", "qwen-3b")]
JUDGES = JudgingConfig(
    judges=(PairwiseJudge(name="gpt-4o", api=API), PairwiseJudge(name="local-8b", api=API), PaperJudge(api=API)),
    pairs=tuple(Pair(first=first, second=second) for first, second in PAIRS),
)
REASON = "It names the reason and the step, where the other one only lists words."


def liking_length(draw: random.Random, taste: float) -> Callable[[Question], str]:
    """Prefers the longer reply the more, the longer it is; says nothing of use now and then."""

    def answer(question: Question) -> str:
        text = question.messages[-1].content
        if "Reply of assistant 1" in text:
            return f"{draw.choice((7, 8, 9))} {draw.choice((7, 8))}\n{REASON}"
        shown = SHOWN.search(text)
        if shown is None:
            return "A reference reply."
        if draw.random() < 0.03:
            return "Both are fine."
        a, b = (len(reply) for reply in shown.groups())
        return f"{'A' if draw.random() < 0.5 + taste * (a - b) / 400 else 'B'}\n{REASON}"

    return answer


def write_judged_run(folder: Path, *, prompts: int = 40) -> Path:
    """`write_run` with four students, three judges, people, and a set that overlaps with training."""
    write_run(folder, prompts=prompts, students=STUDENTS)
    draw = random.Random(5)
    tastes = {"gpt-4o": 2.0, "local-8b": 1.0, "paper": 0.0}
    scripts = {name: Scripted(liking_length(draw, taste), 0.002) for name, taste in tastes.items()}
    comparisons = []
    for name in SETS:
        rows = read_jsonl(folder / "replies" / "teacher" / f"{name}.jsonl")
        asked = [Prompt.from_text(row["id"], row["prompt"][-1]["content"]) for row in rows]
        comparisons += [read_comparison(folder, pair, name, asked) for pair in JUDGES.pairs]
    votes = {f"held_out-{number}": float(draw.random() < 0.6) for number in range(0, prompts, 2)}
    overlapping = {"name": "vicuna", "kind": "out_of_distribution", "prompts": 80, "sha256": "ab", "overlap": ["a"]}
    judge_all(
        JUDGES,
        folder,
        comparisons,
        seed=0,
        progress=Silent(),
        stop=going_on(),
        respondent=lambda _api, ledger, _stop: scripts[ledger.name],
        voices={Cell("people (arena)", "held_out", "gad", "teacher"): votes},
        sets=[overlapping],
    )
    refresh(folder / "summary.json")
    return folder
