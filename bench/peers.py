"""The peers, on TRL's GRPOTrainer, written as somebody would who knows TRL and wants speed.

    trl_grpo    GRPO with a frozen reward model of the student's size
    trl_naive   GAD: a reward function scores the replies; then the discriminator trains on all pairs, the teacher's
                reply forwarded once for each of the student's
    trl_fused   GAD: one pass of the discriminator with gradient, teacher once per prompt; its scores are the rewards

The same model, data, lengths, sampling, optimizer and float32 for all, no KL term (TRL's default). What a careful user
would do is done: no gradient checkpointing, AdamW's fused kernel, no saving, no reports, scores without an attention
mask on right-padded rows (a causal kernel needs none), token ids instead of texts. The size of the micro-batches (ROWS)
is set from outside: `bench.step` tries several and takes the fastest for each contestant.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench import workload as files
from bench.worker import Turns
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

ROWS = {
    "policy": int(os.environ.get("BENCH_POLICY_ROWS", "8")),
    "discriminator": int(os.environ.get("BENCH_DISCRIMINATOR_ROWS", "8")),
}
"""Rows of a micro-batch."""


class Discriminator:
    """A classifier with one output, as TRL's reward models have; high means teacher."""

    def __init__(self, folder: Path, *, fused: bool) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(folder / "reward")
        self._fused = fused
        self._adamw = torch.optim.AdamW(
            self.model.parameters(),
            lr=files.LEARNING_RATE,
            betas=files.BETAS,
            weight_decay=files.WEIGHT_DECAY,
            fused=True,
        )
        self.losses: list[float] = []

    def __call__(
        self, prompts: list[str], completion_ids: list[list[int]], teacher: list[str], **_: Any
    ) -> list[float]:
        """TRL's reward function: rewards of all rows, groups one after another."""
        prompt_ids = self._tokenizer(prompts, add_special_tokens=False)["input_ids"]
        teacher_ids = [[*ids, self._tokenizer.eos_token_id] for ids in self._tokenizer(teacher)["input_ids"]]
        students = [prompt + reply for prompt, reply in zip(prompt_ids, completion_ids, strict=True)]
        teachers = [prompt + reply for prompt, reply in zip(prompt_ids, teacher_ids, strict=True)]
        rewards = self.fused(students, teachers) if self._fused else self.naive(students, teachers)
        return rewards.tolist()

    def naive(self, students: list[list[int]], teachers: list[list[int]]) -> Tensor:
        """Score, then train on every pair."""
        with torch.no_grad():
            rewards = torch.cat([self._scores(rows) for rows in _chunks(students, 4 * ROWS["discriminator"])])
        loss = 0.0
        pairs = list(zip(teachers, students, strict=True))
        for part in _chunks(pairs, max(1, ROWS["discriminator"] // 2)):
            scores = self._scores([row for pair in part for row in pair]).view(-1, 2)
            share = -F.logsigmoid(scores[:, 0] - scores[:, 1]).sum() / len(pairs)
            share.backward()
            loss += share.item()
        self._step(loss)
        return rewards

    def fused(self, students: list[list[int]], teachers: list[list[int]]) -> Tensor:
        """One pass; each prompt's teacher reply and its students' replies are one micro-batch."""
        rewards, loss = [], 0.0
        for start in range(0, len(students), files.REPLIES):
            group = students[start : start + files.REPLIES]
            scores = self._scores([teachers[start], *group])
            share = -F.logsigmoid(scores[0] - scores[1:]).sum() / len(students)
            share.backward()
            loss += share.item()
            rewards.append(scores[1:].detach())
        self._step(loss)
        return torch.cat(rewards)

    def _scores(self, rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        states = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows])
        scores: Tensor = self.model.score(states[torch.arange(len(rows)), last])[:, 0]
        return scores

    def _step(self, loss: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), files.MAX_GRAD_NORM)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self.losses.append(loss)


def _chunks(rows: list[Any], size: int) -> list[list[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _Waits(TrainerCallback):
    """A step begins when the word is given."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._seen = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._turns.begin()

    def on_step_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        new, self._seen = state.num_input_tokens_seen - self._seen, state.num_input_tokens_seen
        self._turns.end(tokens_with_prompts=float(new))
        self._turns.begin()


def data(folder: Path) -> Dataset:
    """Prompts as the chat template renders them, so that everyone's rows are the same ids."""
    _, rows = files.read(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    return Dataset.from_dict({"prompt": texts, "teacher": [row["completion"] for row in rows]})


def config(workload: files.Workload, output: str) -> GRPOConfig:
    rows = workload.prompts * workload.replies
    return GRPOConfig(
        output_dir=output,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=ROWS["policy"],
        gradient_accumulation_steps=rows // ROWS["policy"],
        num_generations=workload.replies,
        max_completion_length=workload.reply_limit,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="dapo",
        learning_rate=files.LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=files.BETAS[0],
        adam_beta2=files.BETAS[1],
        weight_decay=files.WEIGHT_DECAY,
        max_grad_norm=files.MAX_GRAD_NORM,
        optim="adamw_torch_fused",
        max_steps=100_000,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        model_init_kwargs={"dtype": torch.float32, "attn_implementation": "sdpa"},
    )


def play(name: str, folder: Path, turns: Turns) -> None:
    warnings.simplefilter("ignore")
    workload, _ = files.read(folder)
    reward: Any = str(folder / "reward") if name == "trl_grpo" else Discriminator(folder, fused=name == "trl_fused")
    if name != "trl_grpo":
        reward.__name__ = "discriminator"
    with tempfile.TemporaryDirectory() as output:
        trainer = GRPOTrainer(
            model=str(folder / "model"),
            reward_funcs=reward,
            args=config(workload, output),
            train_dataset=data(folder),
            processing_class=AutoTokenizer.from_pretrained(folder / "model", padding_side="left"),
            callbacks=[_Waits(turns)],
        )
        trainer.train()
