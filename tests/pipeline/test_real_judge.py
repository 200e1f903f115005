"""A real local judge from the command line, `gad judge` and `gad report`. Nothing is claimed of its taste."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gad.storage import read_jsonl
from support import runs, warm
from support.llama_server import serving

pytestmark = [pytest.mark.real, pytest.mark.slow]

REPLIES = {
    "gad": ("Use cold water and a little salt, then let it dry.", "Boil it for eight minutes."),
    "teacher": ("No.", "I do not know."),
}
LETTERS = {"grammar": 'root ::= [ABT] "\\n" [a-z ]{1,20}'}
SCORES = {"grammar": 'root ::= [1-9] " " [1-9] "\\n" [a-z ]{1,20}'}
"""What the server makes the model keep to: a letter or two scores, and a few words."""


def write_replies(folder: Path) -> None:
    """A run that has generated: prompts, and replies of both."""
    prompts = [
        json.loads(line) for line in (folder.parents[1] / "held.jsonl").read_text(encoding="utf-8").splitlines()
    ][:2]
    rows = [{"id": row["id"], "prompt": [{"role": "user", "content": row["prompt"]}]} for row in prompts]
    for model, texts in REPLIES.items():
        path = folder / "replies" / model / "held_out.jsonl"
        path.parent.mkdir(parents=True)
        said = [
            {**row, "completion": text, "tokens": len(text), "finished": True}
            for row, text in zip(rows, texts, strict=True)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")
    (folder / "sets").mkdir()
    (folder / "sets" / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_from_replies_to_the_report(tmp_path: Path) -> None:
    config: dict[str, Any] = runs.run_config(tmp_path, "no/model", seqkd=None).model_dump(mode="json")
    folder = tmp_path / "runs" / "tiny"
    write_replies(folder)
    with serving() as url:
        endpoint = {"base_url": url, "api_key_env": None}
        api = {"model": "SmolLM2-135M-Instruct", "endpoint": endpoint, "limits": {"concurrency": 2}}
        config["judging"] = {
            "pairs": [{"first": "gad"}],
            "judges": [
                {"kind": "pairwise", "name": "letters", "api": {**api, "sampling": {"extra": LETTERS}}},
                {"kind": "paper", "api": {**api, "sampling": {"extra": SCORES}}, "max_reference_tokens": 24},
            ],
        }
        for judge in config["judging"]["judges"]:
            judge["max_verdict_tokens"] = 12
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        done = [warm.run(["-m", "gad", verb, str(file)]) for verb in ("judge", "report")]
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    assert "letters: 4 verdicts, 4 by letter or scores, $0.00" in done[0].stderr
    assert "paper: 4 verdicts" in done[0].stderr
    rows = list(read_jsonl(folder / "verdicts/letters/gad-vs-teacher@held_out.jsonl"))
    assert {(row["prompt_id"], row["order"]) for row in rows} == {
        (f"held-{n}", o) for n in (100, 101) for o in ("first", "second")
    }
    assert {row["preference"] for row in rows} <= {0.0, 0.5, 1.0}
    assert len(list(read_jsonl(folder / "references/paper.jsonl"))) == 2
    figures = json.loads((folder / "judging.json").read_text(encoding="utf-8"))["figures"]
    assert [(row["judge"], row["first"]) for row in figures] == [
        ("letters", "gad"),
        ("paper", "gad"),
        ("paper", "teacher"),
    ]
    assert all(1.0 <= score <= 9.0 for row in read_jsonl(folder / "verdicts/paper/gad-vs-reference@held_out.jsonl")
               for score in row["scores"])  # fmt: skip
    assert rows[0]["raw"].splitlines()[0] in ("A", "B", "T")
    assert "letters" in (folder / "report.html").read_text(encoding="utf-8")
