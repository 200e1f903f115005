"""The examples of a run as its model can use them, and a note of what its token limits left out or cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from gad.build import Workshop
from gad.errors import RunFolderError
from gad.progress import Progress
from gad.records import Example, Prompt
from gad.stages import collect
from gad.storage import write_json
from gad.teacher.files import TEACHER

TOKENS = "tokens.json"
_PLURAL = {"prompt too long": "prompts too long", "reply cut at the limit": "replies cut"}


class Examples:
    """Reads what `collect` wrote."""

    def __init__(self, folder: Path, shop: Workshop, progress: Progress) -> None:
        self.folder = folder
        self._shop = shop
        self._progress = progress

    @cached_property
    def train(self) -> list[Example]:
        """Raises RunFolderError where there are none."""
        if not (self.folder / collect.ORIGINS).exists():
            raise RunFolderError(f"{self.folder}: the teacher's texts are not all here: run `gad collect` first")
        examples = collect.read_examples(self.folder / TEACHER)
        usable = self._usable("train", examples)
        if not usable:
            raise RunFolderError(
                f"none of {len(examples)} training prompts fits into {self._shop.prompt_limit} tokens: raise "
                "prompt.max_prompt_tokens, lower prompt.max_reply_tokens, or take a model with a longer context"
            )
        return usable

    def sets(self, max_prompts: int | None) -> dict[str, list[Example]]:
        """The sets to measure on, by name; a set of which nothing fits is left out, and the note says so."""
        read = {
            name: collect.read_examples(path)[:max_prompts] for name, path in collect.set_paths(self.folder).items()
        }
        found = {name: self._usable(name, examples) for name, examples in read.items()}
        return {name: examples for name, examples in found.items() if examples}

    def prompts(self, name: str, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
        """Of a set without replies: the prompts that fit; how many do not is noted."""
        usable = tuple(prompt for prompt in prompts if self._shop.fits(prompt))
        self._note(name, {"prompt too long": len(prompts) - len(usable)})
        return usable

    def _usable(self, name: str, examples: list[Example]) -> list[Example]:
        usable = self._shop.usable(examples)
        self._note_tokens(name, examples, usable)
        return usable

    def _note_tokens(self, name: str, examples: list[Example], usable: list[Example]) -> None:
        """Write down what the token limits left out or cut."""
        codec = self._shop.codec
        cut = sum(
            reply.finished and not codec.reply_ids(reply.text, finished=True).finished
            for example in usable
            for reply in example.replies
        )
        self._note(name, {"prompt too long": len(examples) - len(usable), "reply cut at the limit": cut})

    def _note(self, name: str, entry: dict[str, int]) -> None:
        """Write down what the token limits left out or cut, and say it once."""
        path = self.folder / TOKENS
        noted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if noted.get(name) != entry:
            write_json(path, {**noted, name: entry})
            if any(entry.values()):
                self._progress.say(f"{name}: " + ", ".join(f"{count} {_PLURAL[what]}" for what, count in entry.items()))
