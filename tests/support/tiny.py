"""Tiny random models of real architectures with a byte-level tokenizer, made on the spot."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from gad.config.models import PromptConfig
from gad.models.attention import IMPLEMENTATION
from gad.models.tokens import Codec

VOCABULARY = 264
"""More rows than tokens, as real models have."""
SPECIALS = ("<|end|>", "<|start|>", "<|pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TEMPLATE_WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + (CHAT_TEMPLATE)
)

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 258,
    "bos_token_id": None,
    "eos_token_id": 256,
}
WINDOW = {"sliding_window": 6}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 2, **WINDOW}),
    "qwen3": ("Qwen3Config", {}),
    "llama3": (
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "gemma": ("GemmaConfig", {}),
    "gemma2": ("Gemma2Config", WINDOW),
    "gemma3": ("Gemma3TextConfig", WINDOW),
    "mistral": ("MistralConfig", WINDOW),
    "smollm": ("LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
}


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and three special tokens; end-of-text is id 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, *SPECIALS])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=SPECIALS[0],
        pad_token=SPECIALS[2],
        additional_special_tokens=[SPECIALS[1]],
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def codec(**settings: Any) -> Codec:
    """A codec of the byte-level tokenizer."""
    return Codec(tokenizer(), PromptConfig(**settings))


def config(architecture: str, **changes: Any) -> Any:
    """A tiny transformers config."""
    name, special = ARCHITECTURES[architecture]
    kind: Callable[..., Any] = getattr(transformers, name)
    return kind(vocab_size=VOCABULARY, **{**SHAPE, **special, **changes})


def model(
    architecture: str = "qwen2",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str = IMPLEMENTATION,
    **changes: Any,
) -> PreTrainedModel:
    """A tiny model whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(
            config(architecture, **changes), attn_implementation=attention
        )
    return made.to(dtype).eval()


def save(folder: Path, architecture: str = "qwen2", *, seed: int = 0, template: str | None = CHAT_TEMPLATE) -> Path:
    """A model folder as a user has one."""
    model(architecture, seed=seed).save_pretrained(folder)
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer,
        eos_token=SPECIALS[0],
        pad_token=SPECIALS[2],
        additional_special_tokens=[SPECIALS[1]],
    )
    own.chat_template = template
    own.save_pretrained(folder)
    return folder
