"""Run files to begin with: the project's recipes, and a small commented one."""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path

from gad.errors import ConfigError
from gad.storage import write_text

START = """\
# A run file to fill in, commented. `gad plan` checks it, `gad run` does it. All keys: docs/configuration.md
name: my-run

data:
  train: replies.jsonl            # rows with a prompt and a completion; also Parquet, CSV, folders, hub names
  held_out: {fraction: 0.05}      # or a file of its own
  # out_of_distribution: other.jsonl
  # on_bad_rows: skip             # the default stops at the first bad row and names it

prompt:
  max_prompt_tokens: 1024
  max_reply_tokens: 512

student:
  model: Qwen/Qwen2.5-0.5B-Instruct   # a folder, a hub name, a .gguf file
  tuning: {kind: lora, rank: 16}      # or {kind: full}

discriminator:
  kind: shared                    # an adapter beside the student's on the same base
  # layer: 12                     # read the score at half the depth: half the cost

seqkd:                            # the control: imitation alone; leave it out to skip it
  epochs: 3
  batch_size: 32
  optimizer: {learning_rate: 2.0e-4, max_grad_norm: 1.0}

warmup:
  batch_size: 32
  replies_per_prompt: 2
  phases:
    - {train: student, epochs: 1}
    - {train: discriminator, epochs: 0.5}
  student: {learning_rate: 2.0e-4, max_grad_norm: 1.0}
  discriminator: {learning_rate: 5.0e-4, max_grad_norm: 1.0}

adversarial:
  epochs: 1
  batch_size: 32                  # prompts a step
  replies_per_prompt: 8
  sampling: {temperature: 0.8}
  student: {learning_rate: 1.0e-4, schedule: linear, max_grad_norm: 1.0}
  discriminator: {learning_rate: 5.0e-4, max_grad_norm: 1.0}
  kl: {weight: 0.05}
  # cross_entropy_weight: 0.1     # a dial from mode seeking back to coverage

# judging:                        # `gad judge`; what it costs is printed by `gad plan`
#   judges: [{kind: pairwise, api: {model: gpt-4o, max_cost_usd: 5}}]
#   sets: [{kind: published, name: vicuna}]

checkpoints:
  every_steps: 50
"""


TEXTS = "recipes/quickstart/"
"""Where the quickstart recipes look for their texts, from the project's folder."""


def recipes_folder() -> Path:
    """In a checkout `recipes/`, in an installed package the copy inside it."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def summaries() -> dict[str, str]:
    """The presets, each with the first sentence of its comment."""
    return {name: _first_sentence(text(name)) for name in names()}


def names() -> list[str]:
    """The presets."""
    return ["start", *sorted(path.stem for path in recipes_folder().glob("*.yaml"))]


def text(preset: str) -> str:
    """A preset's run file. Raises ConfigError for a name that is not there."""
    if preset == "start":
        return START
    if preset not in names():
        near = difflib.get_close_matches(preset, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
        raise ConfigError(f"preset {preset!r}: no such recipe; {hint}")
    return (recipes_folder() / f"{preset}.yaml").read_text(encoding="utf-8")


def write(file: Path, preset: str, *, force: bool) -> list[Path]:
    """Write a preset, and beside it the texts that it trains on where it has its own. Returns what was written.

    Raises ConfigError where something of these names is there already; then nothing is written.
    """
    if file.is_dir():
        raise ConfigError(f"{file} is a folder: give the name of a file, e.g. {file / 'run.yaml'}")
    if file.exists() and not force:
        raise ConfigError(f"{file} exists: give another name, or --force to overwrite it")
    written = text(preset)
    copies: dict[Path, Path] = {}
    if TEXTS in written and not Path(TEXTS).is_dir():
        target = file.parent / "quickstart"
        written = written.replace(TEXTS, f"{target.as_posix()}/")
        copies = {source: target / source.name for source in sorted((recipes_folder() / "quickstart").iterdir())}
    for source, copy in copies.items():
        if copy.exists() and copy.read_bytes() != source.read_bytes():
            raise ConfigError(f"{copy} is there and differs from the recipe's: write the run file into another folder")
    for source, copy in copies.items():
        write_text(copy, source.read_text(encoding="utf-8"))
    write_text(file, written)
    return [file, *copies.values()]


def _first_sentence(written: str) -> str:
    """Of the comment at the head of a run file."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), written.splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    return re.split(r"(?<=[.:;]) ", comment)[0].rstrip(".:;")
