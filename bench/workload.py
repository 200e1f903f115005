"""The two workloads of the step's bench: a tiny Qwen2, prompts and teacher replies, the same files for everyone.

    short   4 prompts of 24-64 tokens, 8 replies each of at most 64 tokens
    long    4 prompts of 16-32 tokens, 8 replies each of at most 192 tokens

Every token but three is one letter, so text and ids are the same row and nobody's lengths change by encoding a reply
again. The model is random, but for one thing: a channel of the embedding is constant, and the head reads end-of-text
from it, so that replies end with a constant probability (`end_rate`) at each token, for everyone.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 320
SPECIALS = ("<|end|>", "<|start|>", "<|pad|>")
CHARACTERS = [letter for letter in map(chr, range(0x61, 0x300)) if letter.isalpha()][: VOCABULARY - len(SPECIALS)]
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>{% endif %}"
)
TEMPLATE_TOKENS = 3
PROMPTS_PER_STEP, REPLIES = 4, 8
CONSTANT = 0.1
"""Five times the embedding's standard deviation."""
LEARNING_RATE, MAX_GRAD_NORM, BETAS, WEIGHT_DECAY = 1e-6, 1.0, (0.9, 0.999), 0.01
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Workload:
    """Lengths in tokens, both ends included; the prompt's with the chat template's own tokens."""

    name: str
    prompt: tuple[int, int]
    reply: tuple[int, int]
    """The teacher's; the student's are of at most the upper end."""
    end_rate: float
    prompts: int = PROMPTS_PER_STEP
    replies: int = REPLIES

    @property
    def reply_limit(self) -> int:
        return self.reply[1]


WORKLOADS = {
    "short": Workload("short", prompt=(24, 64), reply=(16, 64), end_rate=1 / 40),
    "long": Workload("long", prompt=(16, 32), reply=(48, 192), end_rate=1 / 120),
}


def rows(workload: Workload, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts with a teacher's reply, of uniform lengths."""
    dice = random.Random(f"{workload.name}-{seed}")

    def text(low: int, high: int) -> str:
        return "".join(dice.choices(CHARACTERS, k=dice.randint(low, high)))

    low, high = (length - TEMPLATE_TOKENS for length in workload.prompt)
    teacher = (workload.reply[0] - 1, workload.reply[1] - 1)
    return [{"id": str(index), "prompt": text(low, high), "completion": text(*teacher)} for index in range(count)]


def tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: index for index, symbol in enumerate([*CHARACTERS, *SPECIALS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=CHARACTERS[0]))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    raw.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=SPECIALS[0], pad_token=SPECIALS[2], additional_special_tokens=[SPECIALS[1]]
    )
    made.chat_template = TEMPLATE
    return made


def write(folder: Path, workload: Workload, *, count: int = 256) -> None:
    """Model, data and the workload itself into `folder`."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workload.json").write_text(json.dumps(asdict(workload)), encoding="utf-8")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(workload, count))
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    tokens = tokenizer()
    special = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id, "bos_token_id": None}
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "tie_word_embeddings": False, **SHAPE, **special}
    torch.manual_seed(0)
    student = Qwen2ForCausalLM(Qwen2Config(**shape))
    _let_replies_end(student, workload.end_rate, tokens.eos_token_id)
    student.save_pretrained(folder / "model")
    Qwen2ForSequenceClassification(Qwen2Config(num_labels=1, **shape)).save_pretrained(folder / "reward")
    tokens.save_pretrained(folder / "model")
    tokens.save_pretrained(folder / "reward")


def _let_replies_end(model: Any, rate: float, end: int) -> None:
    """Give end-of-text this probability at every token."""
    import torch

    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = CONSTANT
        ids = torch.arange(VOCABULARY)[None]
        channel = model.model(input_ids=ids).last_hidden_state[0, :, 0].mean()
        wanted = math.log(rate / (1 - rate) * (VOCABULARY - 1))
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[end] = 0.0
        model.lm_head.weight[end, 0] = wanted / channel


def read(folder: Path) -> tuple[Workload, list[dict[str, str]]]:
    found = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    workload = Workload(**{**found, "prompt": tuple(found["prompt"]), "reply": tuple(found["reply"])})
    return workload, [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
