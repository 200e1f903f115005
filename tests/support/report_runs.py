"""Run folders to report on: made up, but of the shape and the scale of real ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

STUDENTS = ("base", "seqkd", "gad")
SETS = {"held_out": "in_distribution", "out_of_distribution": "out_of_distribution"}
DECODINGS = ({"name": "t1", "temperature": 1.0, "top_p": 1.0}, {"name": "greedy", "temperature": 0.0, "top_p": 1.0})

_SUBJECTS = (
    "a stained shirt",
    "cold coffee",
    "a squeaking door",
    "wilted basil",
    "a slow laptop",
    "wet boots",
    "stale bread",
)
_VERBS = ("rescue", "clean", "explain", "keep", "repair", "replace", "store")
_WORDS = [
    "warm",
    "water",
    "and",
    "a",
    "little",
    "soap",
    "loosen",
    "most",
    "of",
    "it",
    "then",
    "let",
    "it",
    "dry",
    "away",
    "from",
    "direct",
    "heat",
    "because",
    "a",
    "hot",
    "radiator",
    "sets",
    "what",
    "is",
    "left",
    "so",
    "press",
    "do",
    "not",
    "rub",
    "and",
    "work",
    "from",
    "the",
    "edge",
    "to",
    "the",
    "middle",
    "with",
    "a",
    "clean",
    "cloth",
    "every",
    "time",
    "you",
    "turn",
    "it",
]
_TABLE = {  # student -> preference, c2st_auc, style, length_ratio
    "base": (0.11, 0.97, 0.03, 1.62),
    "seqkd": (0.32, 0.63, 0.88, 1.02),
    "gad": (0.54, 0.79, 0.93, 1.07),
}


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_run(
    folder: Path,
    *,
    prompts: int = 60,
    words: int = 30,
    students: tuple[str, ...] = STUDENTS,
    decodings: tuple[Mapping[str, Any], ...] = DECODINGS,
    verdicts: bool = False,
    text: Callable[[str, str, int], str] | None = None,
    seed: int = 0,
) -> Path:
    """A finished run. text: (whose, set, number) -> a reply or, for "prompt", a prompt, instead of the made-up ones."""
    draw = random.Random(seed)
    write_json(folder / "config.json", config(folder.name, decodings))
    write_jsonl(folder / "metrics.jsonl", metrics(draw))
    for set_name in SETS:
        write_replies(folder, set_name, prompts, words, students, decodings, draw, text)
    write_json(folder / "summary.json", summary(folder.name, prompts, students, decodings))
    if verdicts:
        write_verdicts(folder, prompts, draw)
    return folder


def config(name: str, decodings: tuple[Mapping[str, Any], ...] = DECODINGS) -> dict[str, Any]:
    named = [{"name": d["name"], "sampling": {"temperature": d["temperature"], "top_p": 1.0}} for d in decodings]
    return {
        "name": name,
        "seed": 0,
        "student": {"model": "smollm2-135m"},
        "seqkd": {"epochs": 3.0},
        "warmup": {"batch_size": 16},
        "adversarial": {"steps": 24, "batch_size": 8, "replies_per_prompt": 8, "kl": {"weight": 0.05}},
        "evaluation": {"decodings": named, "confidence": 0.95},
    }


def metrics(draw: random.Random, *, warmup: int = 16, adversarial: int = 24, seqkd: int = 30) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, seqkd + 1):
        loss = 1.9 + 1.4 * math.exp(-step / 6) + draw.gauss(0, 0.05)
        rows.append({"stage": "seqkd", "step": step, "time": 0.0, "student/cross_entropy": loss, "time/step": 1.1})
    for step in range(1, warmup + 1):
        rows.append(
            {
                "stage": "warmup",
                "step": step,
                "time": 0.0,
                "student/cross_entropy": 2.1 + 1.2 * math.exp(-step / 5) + draw.gauss(0, 0.05),
                "discriminator/accuracy_fresh": min(1.0, 0.5 + 0.5 * (1 - math.exp(-step / 4)) + draw.gauss(0, 0.02)),
                "discriminator/margin": 3.0 * (1 - math.exp(-step / 6)),
                "discriminator/loss": 0.69 * math.exp(-step / 8) + 0.1,
                "reply/length_ratio_to_teacher": 1.6 - 0.5 * (1 - math.exp(-step / 4)),
                "tokens/sampled": 4100,
                "time/step": 2.4,
            }
        )
    for step in range(1, adversarial + 1):
        rows.append(
            {
                "stage": "adversarial",
                "step": step,
                "time": 0.0,
                "discriminator/accuracy_fresh": 0.9 - 0.25 * (1 - math.exp(-step / 9)) + draw.gauss(0, 0.03),
                "discriminator/margin": 2.6 - 1.6 * (1 - math.exp(-step / 9)) + draw.gauss(0, 0.15),
                "discriminator/loss": 0.25 + 0.2 * (1 - math.exp(-step / 9)) + draw.gauss(0, 0.02),
                "reward/mean": draw.gauss(0, 0.4),
                "reward/zero_std_groups": 0.0,
                "reply/length_ratio_to_teacher": 1.08 + draw.gauss(0, 0.04),
                "reply/truncated": max(0.0, draw.gauss(0.02, 0.01)),
                "reply/repetition": max(0.0, draw.gauss(0.03, 0.01)),
                "student/kl_to_reference": 0.004 * step + abs(draw.gauss(0, 0.006)),
                "student/entropy": 1.9 - 0.02 * step + draw.gauss(0, 0.03),
                "student/loss": draw.gauss(0, 0.02),
                "student/grad_norm": None if step == 5 else abs(draw.gauss(0.4, 0.1)),
                "tokens/sampled": 2300,
                "tokens/trained": 2300,
                "time/step": 9.7,
            }
        )
    return rows


def prompt_text(draw: random.Random, number: int) -> str:
    return f"How do I {draw.choice(_VERBS)} {draw.choice(_SUBJECTS)}? ({number})"


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(words)).capitalize() + ".\nTip: start small."


def write_replies(
    folder: Path,
    set_name: str,
    prompts: int,
    words: int,
    students: tuple[str, ...],
    decodings: tuple[Mapping[str, Any], ...],
    draw: random.Random,
    text: Callable[[str, str, int], str] | None,
) -> None:
    def reply(whose: str, number: int, prompt: str) -> dict[str, Any]:
        completion = text(whose, set_name, number) if text else sentence(draw, words)
        return {
            "id": f"{set_name}-{number}",
            "prompt": [{"role": "user", "content": prompt}],
            "completion": completion,
            "tokens": max(1, len(completion) // 4),
            "finished": draw.random() > 0.05,
        }

    asked = [text("prompt", set_name, n) if text else prompt_text(draw, n) for n in range(prompts)]
    write_jsonl(
        folder / "replies" / "teacher" / f"{set_name}.jsonl", (reply("teacher", n, p) for n, p in enumerate(asked))
    )
    for student in students:
        for index, decoding in enumerate(decodings):
            name = set_name if index == 0 else f"{set_name}@{decoding['name']}"
            write_jsonl(
                folder / "replies" / student / f"{name}.jsonl", (reply(student, n, p) for n, p in enumerate(asked))
            )
            level = _TABLE.get(student, _TABLE["gad"])[0]
            write_jsonl(
                folder / "scores" / student / f"{set_name}@{decoding['name']}.jsonl",
                (
                    {"id": f"{set_name}-{n}", "teacher": 0.0, "student": draw.gauss(4 * (level - 0.5), 1.2)}
                    for n in range(prompts)
                ),
            )


def figure(student: str, set_name: str, decoding: str | None, name: str, value: float, n: int) -> dict[str, Any]:
    half = 1.96 * math.sqrt(max(1e-4, value * (1 - value) if value < 1 else 0.06) / max(1, n))
    return {
        "student": student,
        "set": set_name,
        "decoding": decoding,
        "name": name,
        "value": value,
        "low": max(0.0, value - half),
        "high": value + half if value >= 1 else min(1.0, value + half),
        "n": n,
        "note": None,
    }


def summary(
    name: str, prompts: int, students: tuple[str, ...] = STUDENTS, decodings: tuple[Mapping[str, Any], ...] = DECODINGS
) -> dict[str, Any]:
    figures, paired = [], []
    for set_name in SETS:
        worse = 0.0 if set_name == "held_out" else 0.05
        for decoding in decodings:
            shift = 0.0 if decoding["name"] == "t1" else 0.2
            for student in students:
                preference, auc, style, ratio = _TABLE.get(student, _TABLE["gad"])
                values = {
                    "preference": min(0.97, preference + shift) - worse,
                    "c2st_auc": min(0.99, auc + worse),
                    "style": max(0.0, style - worse),
                    "length_ratio": ratio,
                    "finished": 0.95,
                    "repetition": 0.03,
                    **{f"overlap_f1_{n}": 0.5 / n for n in range(1, 7)},
                }
                figures += [figure(student, set_name, decoding["name"], k, v, prompts) for k, v in values.items()]
            for against in students[:-1]:
                base = _TABLE.get(against, _TABLE["gad"])
                for index, key in enumerate(("preference", "c2st_auc", "style")):
                    gap = _TABLE["gad"][index] - base[index]
                    paired.append(
                        {
                            "student": "gad",
                            "against": against,
                            "set": set_name,
                            "decoding": decoding["name"],
                            "name": key,
                            "difference": gap,
                            "low": gap - 0.11,
                            "high": gap + 0.11,
                            "p_value": 0.0004 if abs(gap) > 0.11 else 0.21,
                            "n": prompts,
                        }
                    )
        for student in students:
            figures.append(figure(student, set_name, None, "teacher_nll", 2.6, prompts))
        figures.append(figure("teacher", set_name, None, "style", 1.0, prompts) | {"high": 1.0})
    return {
        "format": 1,
        "name": name,
        "created": "2026-01-31T12:00:00+00:00",
        "students": list(students),
        "headline": "gad",
        "sets": [{"name": s, "kind": kind, "prompts": prompts, "sha256": "9f" * 32} for s, kind in SETS.items()],
        "decodings": [dict(d) for d in decodings],
        "figures": figures,
        "paired": paired,
        "checkpoint": {
            "chosen": "adversarial-20",
            "last": "adversarial-24",
            "metric": "preference",
            "reason": "the highest preference (.54) among checkpoints with a length ratio between .67 and 1.5",
        },
        "dropped": [{"where": "train", "reason": "empty reply", "count": 2}],
        "leaks": [{"set": "held_out", "id": "held_out-3", "train_id": "train-41", "similarity": 0.83}],
        "cost": {"teacher_usd": 0.0, "judge_usd": 1.25},
        "seconds": {"seqkd": 33.0, "warmup": 41.2, "adversarial": 233.0, "evaluate": 4000.0},
        "tokens": {"sampled": 120800, "trained": 55200},
        "machine": {"cpu": "2 cores", "torch": "2.13.0"},
    }


def write_verdicts(folder: Path, prompts: int, draw: random.Random) -> None:
    for judge, taste in (("alpha", 0.55), ("beta", 0.5)):
        rows: list[dict[str, Any]] = []
        for number in range(prompts):
            for order in ("first", "second"):
                won = draw.random() < taste
                words = f"The {order} reply is more to the point."
                rows.append(
                    {"id": f"held_out-{number}", "set": "held_out", "first": "gad", "second": "teacher", "order": order,
                     "preference": float(won), "raw": words, "cost_usd": 0.001}
                )  # fmt: skip
        rows.append({"id": "held_out-0", "set": "held_out", "first": "gad", "second": "teacher", "order": "first",
                     "preference": None, "raw": "I would rather not say.", "cost_usd": 0.001})  # fmt: skip
        write_jsonl(folder / "verdicts" / judge / "gad-vs-teacher.jsonl", rows)
