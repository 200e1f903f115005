"""The quickstart in a form that fits this machine: `python scripts/demo.py RUN.yaml [key.path=value ...]`.

A processor with bfloat16 instructions is several times as fast as one without. So one step of imitation is timed, the
run file's work is counted in such steps, and the longest form of it that stays within the minutes is run. A run that
was begun is taken up in the form it was begun in. Another run file is run as it is.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gad.__main__ import main as gad
from gad.cli import let_threads_sleep
from gad.config.loading import load
from gad.config.run import RunConfig

QUICKSTART = "recipes/quickstart.yaml"
MINUTES = 8.0
"""For the run alone: ten, less the installation and what a busy machine takes."""
SHORT = (
    'prompt.system=""',
    "prompt.max_reply_tokens=56",
    "seqkd.start_from=warmup",
    "seqkd.batch_size=8",
    "warmup.batch_size=8",
    "warmup.replies_per_prompt=4",
    "discriminator.head_rate=10",
    "evaluation.independent.batch_size=8",
    "compute.rows_per_sampling_batch=128",
    "evaluation.decodings=[{name: t1, sampling: {temperature: 1.0}}]",
)
"""For whatever is not the full form: no system prompt of the template's own, replies cut behind the teacher's longest
(49 tokens), one warm-up for GAD and its control, small batches of imitation, a discriminator whose head learns fast."""
GAME = (
    "warmup.phases.1.epochs=0.3",
    "adversarial.student.warmup_steps=2",
    "adversarial.length_guard=true",
)
"""The full form's warm-up and game, with fewer lessons and steps. The first two steps are small, because Adam's moments
are empty; and length, which the discriminator sees first, is kept out of the reward where it leads away from the
teacher's."""
GAME_STEPS = (18, 16, 14, 12, 11, 10, 9)
BRIEF = (
    "warmup.phases.1.epochs=0.16",
    "adversarial.batch_size=8",
    "adversarial.replies_per_prompt=8",
    "adversarial.trained_replies=2",
    "adversarial.student.warmup_steps=1",
    "adversarial.student.schedule=constant",
    "adversarial.discriminator.learning_rate=1.0e-3",
    "adversarial.kl.weight=0",
    "adversarial.cross_entropy_weight=0.5",
)
"""For slow machines: in a step of the game 64 replies are sampled and scored, and the student learns from the worst and
the best one to each prompt, because that costs least. Each step moves it far, and half the cross-entropy is mixed in, a
pull back to the teacher's replies."""
BRIEF_STEPS = (16, 14, 12, 11, 10, 9, 8, 7, 6, 5)
STEP_EPOCHS = 0.02666
"""8 of 300 of the teacher's replies, rounded down: a step of the control."""


def _game(steps: int) -> tuple[str, ...]:
    return (*SHORT, *GAME, *_played(steps, control=2 * steps), *_judged(_prompts(steps)))


def _brief(steps: int) -> tuple[str, ...]:
    own = ("warmup.phases.0.epochs=0.5", "adversarial.student.learning_rate=8.0e-4")
    return (*SHORT, *BRIEF, *own, *_played(steps, control=steps), *_judged(_prompts(steps)))


def _played(steps: int, *, control: int) -> tuple[str, str]:
    return f"adversarial.steps={steps}", f"seqkd.epochs={control * STEP_EPOCHS:.4f}"


def _prompts(steps: int) -> int:
    return 24 if steps < 12 else 40


def _judged(prompts: int) -> tuple[str, str]:
    """The independent discriminator learns from three of the 300 teacher's replies for every two prompts of a set."""
    return f"evaluation.max_prompts={prompts}", f"evaluation.independent.epochs={prompts / 200:g}"


FORMS = {
    "full": (),
    **{f"game-{steps}": _game(steps) for steps in GAME_STEPS},
    **{f"brief-{steps}": _brief(steps) for steps in BRIEF_STEPS},
    "least": (
        *SHORT,
        *BRIEF,
        "warmup.phases.0.epochs=0.4",
        "adversarial.student.learning_rate=5.0e-4",
        *_played(4, control=4),
        *_judged(20),
    ),
}
"""From the longest to the shortest: what each changes in the run file."""

ROWS = 16
PROMPTS, SETS, ARMS = 300, 2, 3


@dataclass(frozen=True, slots=True)
class Costs:
    """What else there is, in steps of imitation of 16 rows. From the `time/*` of runs' logs on two cores.

    batch, sampled: a batch of replies of 64 tokens, and each of them. critic_row, student_row, reference_row,
    independent_row: a row of the discriminator's update, of the student's, of the reference's part in it, of the
    independent discriminator's update. scored, likelihood: one reply. rest: all that does not grow.
    """

    batch: float
    sampled: float
    critic_row: float
    student_row: float
    reference_row: float
    independent_row: float
    scored: float
    likelihood: float
    rest: float


COSTS = {
    "float32": Costs(0.4, 0.025, 0.0165, 0.05, 0.02, 0.029, 0.0135, 0.03, 9.0),
    "bfloat16": Costs(0.4, 0.02, 0.017, 0.047, 0.015, 0.028, 0.013, 0.03, 14.0),
}
"""From a run on an Intel Xeon with AVX-512 (brief-14), and from several on an AMD EPYC with bfloat16 instructions."""
SHORT_ROW = 0.85
"""A row without a system prompt, of one with it."""


def main(run_file: str, overrides: list[str]) -> None:
    """`gad run` in this process, which has imported what that needs."""
    if Path(run_file).as_posix() == QUICKSTART:
        overrides = [*_form(run_file, overrides), *overrides]
    sys.argv = ["gad", "run", run_file, *overrides]
    gad()


def _form(run_file: str, overrides: list[str]) -> tuple[str, ...]:
    configs = {name: load(Path(run_file), [*changes, *overrides]) for name, changes in FORMS.items()}
    recorded = configs["full"].folder / "config.json"
    if recorded.exists():
        before = json.loads(recorded.read_text(encoding="utf-8"))
        return next((FORMS[name] for name, each in configs.items() if each.model_dump(mode="json") == before), ())
    seconds, arithmetic = _step_seconds(configs["full"])
    minutes = {name: steps_of_work(config, COSTS[arithmetic]) * seconds / 60 for name, config in configs.items()}
    chosen = next((name for name in FORMS if minutes[name] <= MINUTES), "least")
    _say(f"a step of imitation takes {seconds:.1f} s here; the full quickstart takes about {minutes['full']:.0f} min")
    if chosen != "full":
        _say(f"so this is its {chosen} form, about {minutes[chosen]:.0f} min: {' '.join(FORMS[chosen])}")
        _say(f"the full one, of docs/quickstart-results.md: .venv/bin/gad run {QUICKSTART} name=full")
    return FORMS[chosen]


def steps_of_work(config: RunConfig, costs: Costs) -> float:
    """The quickstart's work in steps of imitation of 16 rows."""
    assert config.seqkd is not None
    assert config.warmup is not None
    assert config.adversarial is not None
    game, warmup, judge = config.adversarial, config.warmup, config.evaluation.independent
    row = SHORT_ROW if config.prompt.system == "" else 1.0
    imitated = (config.seqkd.epochs + float(warmup.phases[0].epochs or 0)) * PROMPTS / ROWS * row
    taught = warmup.batch_size * warmup.replies_per_prompt
    lesson = (taught + warmup.batch_size) * costs.critic_row
    lessons = math.ceil(float(warmup.phases[1].epochs or 0) * PROMPTS / warmup.batch_size)
    replies = game.batch_size * game.replies_per_prompt
    trained = game.batch_size * (game.trained_replies or game.replies_per_prompt)
    row_cost = costs.student_row + (costs.reference_row if game.kl.weight else 0.0)
    step = _sampled(config, costs, replies) + trained * row_cost + (replies + game.batch_size) * costs.critic_row
    step += game.batch_size / ROWS * row if game.cross_entropy_weight else 0.0
    judged = judge.epochs * PROMPTS
    judging = 2 * _sampled(config, costs, judged) + 3 * judged * costs.independent_row
    shown = min(60, config.evaluation.max_prompts or 60)
    drawn = ARMS * len(config.evaluation.decodings)
    measured = drawn * _sampled(config, costs, shown) + (drawn + 1) * shown * costs.scored
    measured += ARMS * shown * costs.likelihood
    taught_in_all = lessons * lesson + _sampled(config, costs, lessons * taught)
    return imitated + taught_in_all + float(game.steps or 0) * step + judging + SETS * measured + costs.rest


def _sampled(config: RunConfig, costs: Costs, replies: float) -> float:
    batches = math.ceil(replies / config.compute.rows_per_sampling_batch)
    return config.prompt.max_reply_tokens / 64 * (batches * costs.batch + replies * costs.sampled)


def _step_seconds(config: RunConfig) -> tuple[float, str]:
    """Twice the best of five half steps after a first one, so that what else the machine does at times is no part of
    it, nor memory that is new; and the number type that it was in."""
    let_threads_sleep()
    _say("timing this machine ...")
    from gad.build import Workshop
    from gad.models.arithmetic import fastest
    from gad.records import Example, Prompt, TeacherReply
    from gad.storage import read_jsonl

    assert config.seqkd is not None
    workshop = Workshop(config)
    trainer = workshop.student_trainer(config.seqkd.optimizer, 3)
    rows = list(read_jsonl(Path("recipes/quickstart/train.jsonl")))[: ROWS // 2]
    replies = [TeacherReply(row["completion"]) for row in rows]
    examples = [
        (Example(Prompt.from_text(row["id"], row["prompt"]), (reply,)), reply)
        for row, reply in zip(rows, replies, strict=True)
    ]
    times = []
    for _ in range(6):
        started = time.perf_counter()
        trainer.imitate(examples)
        times.append(time.perf_counter() - started)
    return 2 * min(times[1:]), fastest(workshop.device)


def _say(text: str) -> None:
    print(f"demo: {text}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
