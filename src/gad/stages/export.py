"""The chosen student as an ordinary Hugging Face folder, with a model card."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gad.config.run import RunConfig
from gad.storage import atomic_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [distillation, gad]
{base}---

# {name}

{model}, distilled from {teacher} by Generative Adversarial Distillation (arXiv 2511.10643) with `gad`.

- trained on {prompts} prompts with the teacher's replies; checkpoint `{checkpoint}` ({reason})
{bought}- prompts are wrapped as `{format}`{system}; replies were cut at {max_reply_tokens} tokens in training

{figures}
Terms: training on a provider's output may be restricted by that provider's terms of use; check them before you
publish or sell this model. The base model's licence applies.
"""


def export(
    target: Path, config: RunConfig, folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write model, tokenizer and card; the folder is complete or absent."""
    with atomic_directory(target) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card(config, folder), encoding="utf-8")


def card(config: RunConfig, folder: Path) -> str:
    """The model card, from what the run folder holds."""
    summary = _read(folder / "summary.json")
    choice = _read(folder / "choice.json")
    origins = _read(folder / "data.json")
    public_name = "/" in config.student.model and not Path(config.student.model).exists()
    return CARD.format(
        name=config.name,
        base=f"base_model: {config.student.model}\n" if public_name else "",
        model=config.student.model,
        teacher=", ".join(origins.get("teachers", [])) or "its teacher",
        prompts=origins.get("sets", {}).get("train", {}).get("prompts", "?"),
        checkpoint=choice.get("chosen", "the last one"),
        reason=choice.get("reason", "not chosen"),
        format=config.prompt.format,
        system=_system(config.prompt.system),
        max_reply_tokens=config.prompt.max_reply_tokens,
        bought=_bought(_read(folder / "collect.json")),
        figures=_figures(summary),
    )


def _system(text: str | None) -> str:
    """What a conversation begins with where the run file says so: the student is to be served with it."""
    if text is None:
        return ""
    return f", with the system prompt {json.dumps(text, ensure_ascii=False)} where a conversation has none"


def _bought(collected: dict[str, Any]) -> str:
    """Where the teacher's replies are from, where they were bought."""
    if not collected.get("first_reply"):
        return ""
    first, last = (time.strftime("%Y-%m-%d", time.gmtime(collected[f"{which}_reply"])) for which in ("first", "last"))
    days = first if first == last else f"{first} to {last}"
    models = ", ".join(f"`{name}` ({count:,})" for name, count in collected["models"].items())
    return f"- {collected['bought']:,} replies of {days}, asked of `{collected['model']}`, written by {models}\n"


def _figures(summary: dict[str, Any]) -> str:
    headline = summary.get("headline")
    rows = [
        f"| {row['set']} | {row['name']} | {row['value']:.3f} | {row['n']} |"
        for row in summary.get("figures", [])
        if row["student"] == headline and row["decoding"] == summary["decodings"][0]["name"]
    ]
    if not rows:
        return ""
    return "\n".join(["| set | figure | value | prompts |", "|---|---|---|---|", *rows, ""])


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
