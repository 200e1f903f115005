"""Beside the race: do ours and the peers compute the same, what the machine can do, and sampling alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from bench import workload as files
from transformers import AutoTokenizer, PreTrainedTokenizerFast


def equal_losses(folder: Path) -> dict[str, float]:
    """The discriminator's loss of the same weights on the same rows: ours, and each peer's way of computing it."""
    AutoTokenizer.from_pretrained = PreTrainedTokenizerFast.from_pretrained
    from bench import ours
    from bench.peers import Discriminator

    from gad.build import Workshop
    from gad.training.run import Drawn

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:
        config = ours.run_config(folder, Path(runs))
        shop = Workshop(config)
        game = ours.game(shop, config, frozen=False)
        batch = [Drawn(example, example.replies[0], 0) for example in ours.examples(folder)[: files.PROMPTS_PER_STEP]]
        groups, _ = game.replies.groups(batch, 1)
        peers = {name: Discriminator(folder, fused=name == "fused") for name in ("naive", "fused")}
        scorer = game.discriminator.scorer
        theirs = peers["naive"].model
        own = scorer.member.network.tensors("discriminator")
        for name, tensor in theirs.state_dict().items():
            if name.startswith("model."):
                own[name].data.copy_(tensor)
        scorer.head_H.data.copy_(theirs.score.weight[0].detach())
        teacher_P, student_PG = game.discriminator.score(groups)
        loss = float(-F.logsigmoid(teacher_P[:, None] - student_PG).mean())
        students, teachers = [], []
        for group in groups:
            row, places = scorer.row(group)
            said = [[*row.prompt, *row.replies[place]] for place in places]
            teachers += [said[0]] * (len(said) - 1)
            students += said[1:]
        for name, peer in peers.items():
            getattr(peer, name)(students, teachers)
    result = {"ours": loss, **{name: peer.losses[0] for name, peer in peers.items()}}
    if max(result.values()) - min(result.values()) > 1e-5:
        raise SystemExit(f"the discriminator's losses differ on the same rows: {result}")
    return result


def products() -> dict[str, float]:
    """GFLOP/s of float32 and bfloat16 products at the bench's shapes: torch's own, and by `gad.models.linear`."""
    from gad.models.linear import product

    torch.set_num_threads(1)
    x, weight = torch.randn(1400, 256), torch.randn(1024, 256)
    narrow = (x.bfloat16(), weight.bfloat16())
    flops = 2 * x.numel() * len(weight)
    with torch.inference_mode():
        ways: dict[str, Callable[[], Any]] = {
            "torch_fp32": lambda: F.linear(x, weight),
            "ours_fp32": lambda: product(x, weight),
            "torch_bf16": lambda: F.linear(*narrow),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(7):
            for name, way in ways.items():
                found[name].append(flops / _seconds(way, 20) / 1e9)
    return {f"{name}_gflops": median(values) for name, values in found.items()}


def sampling(folder: Path, rounds: int) -> dict[str, Any]:
    """transformers' `generate` against our sampler: the same model, prompts and settings, CPU seconds a reply token.

    Replies end as they end in the race; a token after the end of a reply is no token of the reply.
    """
    AutoTokenizer.from_pretrained = PreTrainedTokenizerFast.from_pretrained
    from bench import ours
    from transformers import AutoModelForCausalLM

    from gad.build import Workshop
    from gad.training.run import Drawn

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:
        config = ours.run_config(folder, Path(runs))
        shop = Workshop(config)
        game = ours.game(shop, config, frozen=True)
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
        workload, _ = files.read(folder)
        batch = [Drawn(example, example.replies[0], 0) for example in ours.examples(folder)[: workload.prompts]]
        texts = [
            tokenizer.apply_chat_template(
                [message.as_dict() for message in drawn.example.prompt.messages],
                tokenize=False,
                add_generation_prompt=True,
            )
            for drawn in batch
            for _ in range(workload.replies)
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        pad = tokenizer.pad_token_id
        theirs, per_token = [], []
        for _ in range(rounds):
            started = time.process_time()
            groups, _ = game.replies.groups(batch, 1)
            spent = time.process_time() - started
            tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
            per_token.append(spent / tokens)
            started = time.process_time()
            with torch.inference_mode():
                ids = model.generate(
                    **inputs,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=workload.reply_limit,
                    pad_token_id=pad,
                )
            spent = time.process_time() - started
            theirs.append(spent / int((ids[:, inputs["input_ids"].shape[1] :] != pad).sum()))
    return {
        "transformers_over_ours": median(theirs) / median(per_token),
        "ours_seconds_per_token": per_token,
        "transformers_seconds_per_token": theirs,
    }


def _seconds(way: Callable[[], Any], repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        way()
    return (time.process_time() - started) / repeats
