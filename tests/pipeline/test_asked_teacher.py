"""A run whose teacher, judge and rival are all behind an API with a key, which they repeat in all that they say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gad.cli import app
from gad.config.run import RunConfig
from gad.errors import ConfigError
from gad.stages.generate_api import what_is_left
from gad.storage import read_jsonl
from support import runs, tiny
from support.voice import Voice, api, shorter_is_better, speaking

VARIABLE, KEY = "GAD_TEST_SECRET", "secret-0123456789-of-mine"
SYSTEM = "You live by the sea."


def says_the_key(body: dict[str, Any]) -> str | tuple[int, str]:
    """As it would, with the key in it; a third of all questions are refused once, with the key in the refusal."""
    said = json.dumps(body)
    asked[said] = asked.get(said, 0) + 1
    if len(said) % 3 == 0 and asked[said] == 1:
        return 500, f"cannot handle Authorization: Bearer {KEY}"
    return f"{shorter_is_better(body)} My key is {KEY}."


asked: dict[str, int] = {}


def keyed(url: str, **more: Any) -> dict[str, Any]:
    return api(url, **more) | {"endpoint": {"base_url": url, "api_key_env": VARIABLE}}


@pytest.fixture(scope="module")
def voice() -> Iterator[Voice]:
    with speaking(Voice(says_the_key)) as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, voice: Voice) -> Iterator[tuple[Path, str, list[dict[str, Any]]]]:
    """A whole run: its folder, all that it said, and what was asked for the sets of judging.sets."""
    folder = tmp_path_factory.mktemp("asked")
    stories = folder / "stories.jsonl"
    stories.write_text("".join(f'{{"id": "s{n}", "prompt": "Tell story {n}."}}\n' for n in range(4)), encoding="utf-8")
    teacher = keyed(voice.url, system_prompt=SYSTEM, sampling={"max_tokens": 20}, max_cost_usd=1.0)
    config = runs.run_config(folder, tiny.save(folder / "model"), seqkd=None, teacher=teacher).model_dump(mode="json")
    for name in ("held_out", "out_of_distribution"):
        path = Path(config["data"][name]["path"])
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        bare = "".join(json.dumps({"id": row["id"], "prompt": row["prompt"]}) + "\n" for row in rows)
        path.write_text(bare, encoding="utf-8")
    rival = {"kind": "endpoint", "name": "rival", "api": keyed(voice.url)}
    config["evaluation"]["models"] = [{"kind": "teacher"}, rival]
    own = {"kind": "own", "name": "stories", "source": str(stories), "out_of_distribution": True}
    config["judging"] = {"judges": [{"kind": "pairwise", "api": keyed(voice.url)}], "sets": [own]}
    run_file = folder / "run.yaml"
    run_file.write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, KEY)
        said = ""
        for verb in ("plan", "run", "report"):
            done = CliRunner().invoke(app, [verb, str(run_file)])
            said += done.output
            assert done.exit_code == 0, done.output
        yield folder / "runs" / "tiny", said, [body for body in voice.bodies if "Tell story" in json.dumps(body)]


def test_the_runs_teacher_replies_to_judged_sets_as_it_was_asked_before(
    made: tuple[Path, str, list[dict[str, Any]]],
) -> None:
    folder, said, bodies = made
    rows = {row["id"]: row for row in read_jsonl(folder / "replies" / "teacher" / "stories.jsonl")}
    assert sorted(rows) == ["s0", "s1", "s2", "s3"]
    asked_of_it = [body["messages"] for body in bodies if body["messages"][0]["content"] == SYSTEM]
    assert {messages[1]["content"] for messages in asked_of_it} == {f"Tell story {n}." for n in range(4)}
    verdicts = list(read_jsonl(folder / "verdicts" / "pairwise" / "gad-vs-teacher@stories.jsonl"))
    assert len(verdicts) == 8
    assert "teacher 4 replies, about" in " ".join(said.split())
    bill = json.loads((folder / "endpoints" / "teacher" / "bill.json").read_text(encoding="utf-8"))
    assert bill["spent_usd"] == pytest.approx(4 * 2e-4)


def test_the_key_reaches_no_file_no_figure_no_page_and_no_log(made: tuple[Path, str, list[dict[str, Any]]]) -> None:
    folder, said, _ = made
    files = [path for path in folder.parent.parent.rglob("*") if path.is_file()]
    assert {"summary.json", "report.html", "judging.json", "ledger.jsonl", "config.json"} <= {p.name for p in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in said
    assert "[key]" in (folder / "verdicts/pairwise/gad-vs-teacher@held_out.jsonl").read_text(encoding="utf-8")
    assert "cannot handle" in (folder / "teacher" / "ledger.jsonl").read_text(encoding="utf-8")


def test_the_cap_is_one_for_training_and_for_judged_sets(tmp_path: Path) -> None:
    teacher = api("http://127.0.0.1:1/v1", max_cost_usd=1.0)
    config = runs.run_config(tmp_path, "m", teacher=teacher, evaluation={"models": [{"kind": "teacher"}]})
    (asked_model,) = config.endpoints
    assert (asked_model.name, what_is_left(asked_model.api, tmp_path).max_cost_usd) == ("teacher", 1.0)
    (tmp_path / "collect.json").write_text('{"spent_usd": 0.5, "maybe_usd": 0.2}', encoding="utf-8")
    assert what_is_left(asked_model.api, tmp_path).max_cost_usd == pytest.approx(0.3)
    (tmp_path / "collect.json").write_text('{"spent_usd": 0.9, "maybe_usd": 0.1}', encoding="utf-8")
    with pytest.raises(ConfigError, match="teacher.max_cost_usd=1 was used up by the collection"):
        what_is_left(asked_model.api, tmp_path)


def test_the_runs_teacher_must_be_there_to_be_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind: teacher asks the run's `teacher`, and there is none"):
        runs.run_config(tmp_path, "m", evaluation={"models": [{"kind": "teacher"}]})
    twice = {"models": [{"kind": "teacher"}, {"kind": "endpoint", "name": "teacher", "api": {"model": "m"}}]}
    with pytest.raises(ValueError, match="two models are called 'teacher'"):
        RunConfig.model_validate(
            {**runs.run_config(tmp_path, "m").model_dump(), "teacher": {"model": "m"}, "evaluation": twice}
        )
