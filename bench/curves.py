"""What a step costs as groups, prompts and replies grow: the tiny model of the race, both updates, one thread.

Replies are made up, all of one length, so that the lengths are exactly those of the axis. Beside each measured point
stand the operations that the mathematics asks for: where they grow linearly, so should the seconds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

AXES: dict[str, tuple[int, ...]] = {
    "replies": (2, 4, 8, 16, 32),
    "prompt": (32, 128, 512, 1024, 2048),
    "reply": (32, 128, 256, 512, 1024),
}
USUAL = {"replies": 8, "prompt": 64, "reply": 64}
PROMPTS = 2
BUDGET = 4096


def measure(folder: Path, runs: Path, repeats: int = 1) -> dict[str, list[dict[str, float]]]:
    """For each axis a row of each value: CPU seconds of both updates (the fastest of `repeats`), and their FLOPs."""
    import torch
    from bench import ours
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from gad.build import Workshop

    AutoTokenizer.from_pretrained = PreTrainedTokenizerFast.from_pretrained
    torch.set_num_threads(1)
    shop = Workshop(ours.run_config(folder, runs, budget=BUDGET, reply_limit=max(AXES["reply"])))
    game = ours.game(shop, shop._config, frozen=False)
    _updates(game, _groups(shop.codec, **USUAL))
    found: dict[str, list[dict[str, float]]] = {}
    for axis, values in AXES.items():
        found[axis] = []
        for value in values:
            groups = _groups(shop.codec, **{**USUAL, axis: value})
            rows = [_updates(game, groups) for _ in range(repeats)]
            best = min(rows, key=lambda row: row["cpu_seconds"])
            found[axis].append({axis: value, **best})
    return found


def _updates(game: Any, groups: list[Any]) -> dict[str, float]:
    from gad.training import losses

    started = time.process_time()
    rewards_PG, first = game.discriminator.update(groups)
    second = game.student.update(groups, losses.advantages(game.advantages, rewards_PG), game.objective)
    seconds = time.process_time() - started
    return {"cpu_seconds": seconds, "gflop": (first["flops/discriminator"] + second["flops/student"]) / 1e9}


def _groups(codec: Any, *, replies: int, prompt: int, reply: int) -> list[Any]:
    """PROMPTS groups of exactly these lengths; a reply's letters come from its number, so that no two are alike."""
    from bench.workload import CHARACTERS, TEMPLATE_TOKENS

    from gad.records import Example, Prompt, Rollout, RolloutGroup, TeacherReply

    made = []
    for number in range(PROMPTS):
        text = CHARACTERS[number] * (prompt - TEMPLATE_TOKENS)
        teacher = TeacherReply(CHARACTERS[100 + number] * (reply - 1))
        rollouts = []
        for index in range(replies):
            said = CHARACTERS[(7 * number + index) % 90] * (reply - 1)
            ids = codec.reply_ids(said, finished=True).token_ids
            rollouts.append(Rollout(str(number), ids, said, True, (0.0,) * len(ids)))
        example = Example(Prompt.from_text(str(number), text), (teacher,))
        assert len(codec.prompt_ids(example.prompt)) == prompt
        assert {len(rollout.token_ids) for rollout in rollouts} == {reply}
        made.append(RolloutGroup(example, teacher, tuple(rollouts)))
    return made
