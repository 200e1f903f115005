"""Writes the tables of docs/scaling.md from the arithmetic in gad.traffic: `python scripts/scaling_page.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gad.traffic import Shape, Sharing, Split, Traffic

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- made by scripts/scaling_page.py -->\n", "<!-- end -->\n"
MODEL: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
"""Qwen2.5-14B's `config.json`."""
RANK = 16
HERE = 8
COUNTS = (1, 2, 4, 8, 16, 64, 256, 512)
PROMPTS, TOKENS, BUDGET = 256, 9 * 700, 32768
"""Of a step: prompts; tokens of a prompt with 8 replies and the teacher's, padded; tokens of a micro-batch."""


def micro_batches(processes: int) -> int:
    """Of the process with most prompts; a prompt with its replies is never split."""
    share = -(-PROMPTS // processes)
    return -(-share // max(1, BUDGET // TOKENS))


def step(sharing: Sharing, processes: int) -> Traffic:
    """To the sampler once; then discriminator, reference and student pass over their micro-batches, padded layout."""
    total = sharing.to_sample() + sharing.update() + sharing.update(head=False)
    for _ in range(micro_batches(processes)):
        total += sharing.trained(heads=0) + sharing.forward() + sharing.trained()
    return total


def kept(sharing: Sharing) -> int:
    """Student, discriminator and reference: adapters of one base, or three models of which two are trained."""
    if sharing.rank is not None:
        return sharing.kept() + sharing.shape.adapter(sharing.rank) * (16 + 4)
    return sharing.kept() * 2 + sharing.kept() // 4


def table(shape: Shape, rank: int | None) -> str:
    """One row for each number of GPUs."""
    lines = [
        "| GPUs | passes of each | kept, `all` | sent a step, `all` | kept, `machine` | sent a step, `machine` |"
        " of it between machines | kept, `none` | sent a step, `none` |",
        "|---" * 9 + "|",
    ]
    for count in COUNTS:
        cells = [str(count), str(micro_batches(count))]
        for shard in ("all", "machine", "none"):
            split = Split.of(shard, count, min(HERE, count))  # type: ignore[arg-type]
            sharing = Sharing(shape, split, 2, rank)
            traffic = step(sharing, count)
            cells += [_size(kept(sharing)), _size(traffic.sent(split))]
            if shard == "machine":
                between = Traffic(reduced=traffic.reduced, across=traffic.across).sent(split)
                cells.append(_size(between if split.copies > 1 else 0))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _size(count: float) -> str:
    """Gigabytes with three digits."""
    return f"{count / 1e9:.3g} GB" if count else "0"


def tables() -> str:
    """What stands between the marks."""
    shape = Shape.of(MODEL)
    plain, layer = _size(shape.parameters * 2), _size(2 * sum(rows * columns for rows, columns in shape.layer))
    return (
        f"\nWith LoRA of rank {RANK}: one frozen base, three adapters.\n\n{table(shape, RANK)}\n"
        f"With full tuning: student and discriminator trained, the reference held.\n\n{table(shape, None)}\n"
        f"Not in it: the copy that is sampled from (`compute.merge_adapters`), {plain} a process; what is gathered at\n"
        f"a time, two layers of {layer} with embedding and head; activations.\n\n"
    )


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + tables() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
