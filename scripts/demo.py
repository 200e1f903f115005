"""The quickstart in a form that fits this machine: `python scripts/demo.py RUN.yaml [key.path=value ...]`.

A processor with bfloat16 instructions is several times as fast as one without. So one step of imitation is timed, the
run file's work is counted in such steps, and the longest form of it that stays within the minutes is run. A machine
becomes slower when others use it too: what the warm-up took says how many steps of the game there is still time for. A
run that was begun is taken up as it was begun. Another run file is run as it is.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gad.__main__ import main as gad
from gad.cli import let_threads_sleep
from gad.config.loading import load
from gad.config.run import RunConfig
from gad.folder import CONFIG, METRICS
from gad.storage import read_jsonl

sys.path.insert(0, str(Path(__file__).parent))
from demo_work import COSTS, ROWS, Costs, work_of

QUICKSTART = "recipes/quickstart.yaml"
MINUTES = 8.5
"""For the run alone: ten, less the installation and what a machine that becomes slower after the warm-up takes."""
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
    "student.tuning.first_layer=15",
    "discriminator.layer=20",
    "evaluation.independent.layer=25",
    "seqkd.optimizer.learning_rate=1.0e-3",
    "warmup.phases.1.epochs=0.2",
    "warmup.student.learning_rate=1.0e-3",
    "adversarial.student.learning_rate=1.4e-3",
    "adversarial.student.warmup_steps=2",
    "adversarial.length_guard=true",
)
"""Adapters in the upper half of the layers, so that the lower ones are computed once for all epochs, and once a step
for both players; at higher rates, because they are half as many. More epochs than the forms have are preferred no more
often (docs/quickstart-results.md). The first two steps of the game are small, because Adam's moments are empty; and
length, which the discriminator sees first, is kept out of the reward where it leads away from the teacher's."""
GAME_STEPS = {4: (16, 14, 12, 10), 3: (9, 8, 7, 6)}
"""By epochs of imitation before it."""
LEAST_STEPS = 5
"""Of the game on a machine that has become slower."""
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
BRIEF_STEPS = (11, 10, 9, 8, 7, 6, 5)
STEP_EPOCHS = 0.02666
"""8 of 300 of the teacher's replies, rounded down: a step of the control."""


def _game(epochs: int, steps: int) -> tuple[str, ...]:
    own = (f"warmup.phases.0.epochs={epochs}", *_played(steps, control=2 * steps))
    return (*SHORT, *GAME, *own, *_judged(24))


def _brief(steps: int) -> tuple[str, ...]:
    own = ("warmup.phases.0.epochs=0.5", "adversarial.student.learning_rate=8.0e-4")
    return (*SHORT, *BRIEF, *own, *_played(steps, control=steps), *_judged(24))


def _played(steps: int, *, control: int) -> tuple[str, str]:
    return f"adversarial.steps={steps}", f"seqkd.epochs={control * STEP_EPOCHS:.4f}"


def _judged(prompts: int) -> tuple[str, str]:
    """The independent discriminator learns from three of the 300 teacher's replies for every two prompts of a set."""
    return f"evaluation.max_prompts={prompts}", f"evaluation.independent.epochs={prompts / 200:g}"


FORMS = {
    "full": (),
    **{f"game-{epochs}+{steps}": _game(epochs, steps) for epochs, each in GAME_STEPS.items() for steps in each},
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


def main(run_file: str, overrides: list[str]) -> None:
    """`gad run` in this process, which has imported what that needs."""
    began = time.monotonic()
    if Path(run_file).as_posix() == QUICKSTART:
        overrides = [*_form(run_file, overrides, began), *overrides]
    _gad("run", run_file, overrides)


def _gad(verb: str, run_file: str, overrides: Sequence[str]) -> None:
    sys.argv = ["gad", verb, run_file, *overrides]
    try:
        gad()
    except SystemExit as end:
        if end.code:
            raise


def _form(run_file: str, own: Sequence[str], began: float) -> tuple[str, ...]:
    """What the form that there is time for changes. Of a short one the warm-up is made on the way."""
    configs = {name: load(Path(run_file), [*changes, *own]) for name, changes in FORMS.items()}
    recorded = configs["full"].folder / CONFIG
    if recorded.exists():
        return _begun(run_file, own, json.loads(recorded.read_text(encoding="utf-8")))
    seconds, arithmetic = _step_seconds(configs["full"])
    costs = COSTS[arithmetic]
    minutes = {name: work_of(each, costs).total * seconds / 60 for name, each in configs.items()}
    chosen = next((name for name in FORMS if minutes[name] <= MINUTES), "least")
    _say(f"a step of imitation takes {seconds:.1f} s here; the full quickstart takes about {minutes['full']:.0f} min")
    if chosen == "full":
        return ()
    _say(f"so this is its {chosen} form, about {minutes[chosen]:.0f} min: {' '.join(FORMS[chosen])}")
    _say(f"the full one, of docs/quickstart-results.md: .venv/bin/gad run {QUICKSTART} name=full")
    for verb in ("collect", "warmup"):
        _gad(verb, run_file, [*FORMS[chosen], *own])
    return _fitted(FORMS[chosen], configs[chosen], costs, MINUTES * 60 - (time.monotonic() - began))


def _begun(run_file: str, own: Sequence[str], before: Mapping[str, Any]) -> tuple[str, ...]:
    """The form that a folder was begun in, with the steps that it has; the run file's where it is none of them."""
    steps = (before.get("adversarial") or {}).get("steps")
    for changes in FORMS.values():
        form = _with_steps(changes, steps) if steps else changes
        if load(Path(run_file), [*form, *own]).model_dump(mode="json") == before:
            return form
    return ()


def _fitted(form: tuple[str, ...], config: RunConfig, costs: Costs, left: float) -> tuple[str, ...]:
    """With as many steps of the game as there are seconds left for, at the speed that the warm-up had."""
    work = work_of(config, costs)
    logged = [row["time/step"] for row in read_jsonl(config.folder / METRICS) if row["stage"] == "warmup"]
    seconds = sum(logged) / work.warmup
    affordable = math.floor((left / seconds - work.rest) / work.step)
    steps = min(work.steps, max(affordable, LEAST_STEPS))
    if steps < work.steps:
        _say(f"a step takes {seconds:.1f} s now: there is time for {steps} steps of the game, not {work.steps}")
    return _with_steps(form, steps)


def _with_steps(form: tuple[str, ...], steps: int) -> tuple[str, ...]:
    """For both arms alike: the control's steps are of 8 prompts, the game's of 8 or of 16."""
    control = steps if "adversarial.batch_size=8" in form else 2 * steps
    length = dict(change.split("=", 1) for change in _played(steps, control=control))
    return tuple(f"{key}={length.get(key, value)}" for key, value in (change.split("=", 1) for change in form))


def _step_seconds(config: RunConfig) -> tuple[float, str]:
    """Twice the best of five half steps after a first one, so that what else the machine does at times is no part of
    it, nor memory that is new; and the number type that it was in."""
    let_threads_sleep()
    _say("timing this machine ...")
    from gad.build import Workshop
    from gad.models.arithmetic import fastest
    from gad.records import Example, Prompt, TeacherReply

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
