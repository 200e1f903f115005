"""Judging from the command line: a whole run with judges, further models, sets and people; and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gad.arena.comparisons import book
from gad.arena.votes import Ballot
from gad.cli import app
from gad.config.arena import ArenaConfig
from gad.report.gather import gather
from gad.storage import read_jsonl
from support import runs, tiny, warm
from support.voice import Voice, api, speaking

STORIES = ("Ann", "Bob", "Cleo", "Dora", "Emil", "Fritz")
PAIR = [{"first": "gad", "second": "teacher"}]


def gad(*words: object) -> tuple[int, list[str], str]:
    """Exit code, the lines on standard error, and standard output."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.stderr
    return done.exit_code, done.stderr.splitlines(), done.stdout


def only_error(lines: list[str]) -> str:
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 1, lines
    assert "unexpected" not in errors[0]
    return errors[0]


def write(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def stories(folder: Path) -> Path:
    path = folder / "stories.jsonl"
    rows = [{"id": f"s{n}", "prompt": f"Tell {name} a story of a dragon."} for n, name in enumerate(STORIES)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def voice() -> Iterator[Voice]:
    with speaking() as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(voice: Voice) -> None:
    voice.bodies.clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, voice: Voice) -> tuple[Path, dict[str, Any], list[str]]:
    """A whole run: the folder it lies in, its config, and what it said."""
    folder = tmp_path_factory.mktemp("judged")
    other = tiny.save(folder / "other", "llama3", seed=3)
    config = runs.run_config(folder, tiny.save(folder / "model"), seqkd=None).model_dump(mode="json")
    config["prompt"]["max_reply_tokens"] = 48  # judges like the shorter one: no two are to be of one length
    config["evaluation"]["decodings"] = runs.BOTH
    config["evaluation"]["models"] = [
        {"kind": "checkpoint", "step": 2},
        {"kind": "local", "name": "llama", "model": str(other), "dtype": "float32"},
        {"kind": "endpoint", "name": "far", "api": api(voice.url)},
        {"kind": "endpoint", "name": "teacher", "api": api(voice.url)},
    ]
    config["judging"] = {
        "judges": [{"kind": "pairwise", "api": api(voice.url)}, {"kind": "paper", "api": api(voice.url)}],
        "sets": [
            {"kind": "own", "name": "stories", "source": str(stories(folder)), "out_of_distribution": True},
            {"kind": "published", "name": "vicuna", "source": str(vicuna(folder))},
        ],
    }
    code, lines, _ = gad("run", write(folder / "run.yaml", config))
    assert code == 0, lines
    return folder, config, lines


def vicuna(folder: Path) -> Path:
    path = folder / "vicuna.jsonl"
    rows = [{"question_id": n, "category": "x", "turns": [f"How would you improve habit number {n}?"]} for n in (1, 2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def again(made: tuple[Path, dict[str, Any], list[str]], tmp_path: Path) -> tuple[Path, dict[str, Any], Path]:
    """A copy of the run to go on with: the run file's folder, its config, the run folder."""
    source, config, _ = made
    shutil.copytree(source / "runs", tmp_path / "runs")
    config = json.loads(json.dumps(config)) | {"runs_dir": str(tmp_path / "runs")}
    return tmp_path, config, tmp_path / "runs" / "tiny"


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def figures(folder: Path, name: str) -> dict[tuple[str, str], float]:
    return {(row["student"], row["set"]): row["value"] for row in summary(folder)["figures"] if row["name"] == name}


def lengths(folder: Path, model: str, set_name: str) -> dict[str, int]:
    return {row["id"]: len(row["completion"]) for row in read_jsonl(folder / "replies" / model / f"{set_name}.jsonl")}


def test_verdicts_of_every_judge_on_every_pair_and_set(made: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder = made[0] / "runs" / "tiny"
    names = {path.name for path in (folder / "verdicts" / "pairwise").iterdir()}
    sets = ("held_out", "out_of_distribution", "stories", "vicuna")
    others = ("teacher", "base", "gad-2", "llama", "far")
    assert names == {f"gad-vs-{other}@{name}.jsonl" for other in others for name in sets}
    papers = {path.name for path in (folder / "verdicts" / "paper").iterdir()}
    assert papers == {f"{name}-vs-reference@{at}.jsonl" for name in (*others, "gad") for at in sets}
    rows = list(read_jsonl(folder / "verdicts/pairwise/gad-vs-teacher@held_out.jsonl"))
    assert Counter(row["order"] for row in rows) == {"first": 5, "second": 5}
    assert {row["judge"] for row in rows} == {"pairwise"}
    assert all(row["raw"].endswith("fewer words.") and row["cost_usd"] == pytest.approx(2e-4) for row in rows)


def test_a_judge_of_length_alone_gives_the_figures_that_follow(made: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder = made[0] / "runs" / "tiny"
    for name in ("held_out", "out_of_distribution", "stories"):
        ours, theirs = lengths(folder, "gad", name), lengths(folder, "teacher", name)
        expected = [(ours[key] < theirs[key]) + 0.5 * (ours[key] == theirs[key]) for key in theirs]
        found = figures(folder, "judge_pairwise_win_rate")["gad", name]
        assert found == pytest.approx(sum(expected) / len(expected))
    scores = figures(folder, "judge_paper_score")
    assert list(scores.values()) == pytest.approx([100 * 7 / 13] * 24)
    assert {student for student, _ in scores} == {"base", "gad-2", "llama", "far", "gad", "teacher"}


def test_sets_are_recorded_by_hash_and_shown(made: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, lines = made[0] / "runs" / "tiny", made[2]
    assert "vicuna: 2 prompts (the paper has 80), out of distribution" in lines
    sets = {info["name"]: info for info in summary(folder)["sets"]}
    assert sets["stories"]["kind"] == sets["vicuna"]["kind"] == "out_of_distribution"
    assert (sets["vicuna"]["prompts"], sets["vicuna"]["expected"], len(sets["vicuna"]["sha256"])) == (2, 80, 64)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert sets["vicuna"]["sha256"] in page
    assert "It says the same in fewer words." in page


def test_models_beside_the_runs_own_are_measured_like_them(made: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder = made[0] / "runs" / "tiny"
    assert summary(folder)["students"] == ["base", "gad-2", "llama", "far", "gad"]
    preference = figures(folder, "preference")
    assert {student for student, _ in preference} == {"base", "gad-2", "llama", "far", "gad"}
    assert {student for student, _ in figures(folder, "teacher_nll")} == {"base", "gad-2", "gad"}
    drawn = {(row["student"], row["decoding"]) for row in summary(folder)["figures"] if row["name"] == "length"}
    assert ("llama", "greedy") in drawn
    assert ("far", "t1") in drawn
    assert ("far", "greedy") not in drawn
    reply = next(iter(read_jsonl(folder / "replies/far/held_out.jsonl")))
    assert reply["completion"].startswith("A reply of the endpoint to:")
    assert (reply["tokens"], reply["finished"]) == (48, False)  # in the student's tokens, bytes, and cut
    assert summary(folder)["cost"]["endpoints_usd"] == pytest.approx(25 * 2e-4)  # 17 of far, 8 of the teacher
    diagnostics = {row["name"] for row in summary(folder)["figures"] if row["student"] == "far"}
    assert {"rouge_l", "self_bleu", "distinct_2", "compression_ratio", "overlap_f1_6"} <= diagnostics
    assert {row["id"] for row in read_jsonl(folder / "replies/teacher/stories.jsonl")} == {f"s{n}" for n in range(6)}


def test_what_was_judged_is_not_asked_again(again: tuple[Path, dict[str, Any], Path], voice: Voice) -> None:
    folder, config, run = again
    before = (run / "judging.json").read_bytes(), (run / "summary.json").read_bytes()
    code, lines, _ = gad("judge", write(folder / "run.yaml", config))
    assert code == 0, lines
    assert voice.questions == 0
    assert ((run / "judging.json").read_bytes(), (run / "summary.json").read_bytes()) == before
    config["judging"]["judges"].append({"kind": "pairwise", "name": "second", "orders": "one", "api": api(voice.url)})
    config["judging"]["pairs"] = PAIR
    assert gad("judge", write(folder / "run.yaml", config))[0] == 0
    assert voice.questions == 17  # one order of one pair on all sets
    agreed = json.loads((run / "judging.json").read_text(encoding="utf-8"))["agreement"]
    assert ["pairwise", "second"] in [row["judges"] for row in agreed if row["set"] == "held_out"]


def test_people_and_classifiers_stand_beside_the_judges(again: tuple[Path, dict[str, Any], Path]) -> None:
    folder, config, run = again
    shown = book(gather(run), ArenaConfig(pairs=({"first": "gad", "second": "teacher"},), sets=("held_out",)))
    ballot = Ballot(run, shown)
    ours, theirs = lengths(run, "gad", "held_out"), lengths(run, "teacher", "held_out")
    for comparison in shown.comparisons:
        shorter = "gad" if ours[comparison.prompt_id] < theirs[comparison.prompt_id] else "teacher"
        ballot.vote("Ada", comparison, "left" if comparison.sides("Ada")[0] == shorter else "right")
    ballot.close()
    assert gad("judge", write(folder / "run.yaml", config))[0] == 0
    rows = json.loads((run / "judging.json").read_text(encoding="utf-8"))["agreement"]
    found = {tuple(row["judges"]): row for row in rows if (row["set"], row["second"]) == ("held_out", "teacher")}
    assert found["pairwise", "people (arena)"]["raw"]["value"] == 1.0
    assert found["pairwise", "people (arena)"]["raw"]["n"] == 5
    assert {("people (arena)", "C2ST classifier"), ("pairwise", "independent discriminator")} <= found.keys()
    assert gad("report", folder / "run.yaml")[0] == 0
    assert "people (arena)" in (run / "report.html").read_text(encoding="utf-8")


def test_more_models_leave_the_votes_as_they_are(again: tuple[Path, dict[str, Any], Path]) -> None:
    _, _, run = again
    sheet = book(gather(run), ArenaConfig())
    shutil.copytree(run / "replies" / "llama", run / "replies" / "newcomer")
    assert book(gather(run), ArenaConfig()).run == sheet.run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_keeps_what_was_bought(
    again: tuple[Path, dict[str, Any], Path], voice: Voice, number: signal.Signals, code: int
) -> None:
    folder, config, run = again
    shutil.rmtree(run / "verdicts")
    shutil.rmtree(run / "judges")
    config["judging"]["judges"] = [{"kind": "pairwise", "api": api(voice.url)}]
    config["judging"]["judges"][0]["api"]["limits"]["concurrency"] = 1
    file = write(folder / "run.yaml", config)
    voice.delay = 0.05
    try:
        process = warm.Popen(["-m", "gad", "judge", str(file)])
        deadline = time.monotonic() + 120
        while voice.questions < 12 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, number)
        said = process.communicate(timeout=120)[1]
    finally:
        voice.delay = 0.0
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert gad("judge", file)[0] == 0
    asked = Counter(json.dumps(body["messages"]) for body in voice.bodies)
    assert set(asked.values()) == {1}


def test_plan_names_questions_bill_and_power(again: tuple[Path, dict[str, Any], Path], voice: Voice) -> None:
    folder, config, _ = again
    config["judging"]["judges"][0]["api"] |= {"max_cost_usd": 2.5}
    code, _, told = gad("plan", write(folder / "run.yaml", config))
    assert code == 0
    told = " ".join(told.split())
    assert "gad against teacher, gad against base, gad against gad-2" in told
    assert "held_out 5 prompts, out_of_distribution 4 prompts, stories 6 prompts, vicuna 2 prompts" in told
    assert "pairwise 170 questions, about 0.1" in told  # 17 prompts, 5 pairs, 2 orders
    assert "never more than 2.5 USD" in told
    assert "paper 119 questions" in told  # 17 references, 6 models
    assert "power 2 prompts show a difference of" in told
    assert "far 17 replies, about 0.0" in told
    assert "teacher 8 replies, about 0.0" in told  # to the sets of judging.sets alone
    assert voice.questions == 0


def test_without_torch() -> None:
    code = "import sys, gad.judgement, gad.judging.planning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


REFUSAL = "I'm sorry, but I can't help with that."


def test_a_judge_that_refuses_is_named_with_its_words(again: tuple[Path, dict[str, Any], Path]) -> None:
    folder, config, run = again
    with speaking(Voice(say=lambda _: REFUSAL)) as refusing:
        config["judging"]["judges"] = [{"kind": "pairwise", "name": "shy", "api": api(refusing.url)}]
        config["judging"]["pairs"] = PAIR
        code, lines, _ = gad("judge", write(folder / "run.yaml", config))
    assert code == 1
    assert "judge shy gave no verdict on any of 34 questions (34 no letter on the first line)" in only_error(lines)
    rows = list(read_jsonl(run / "verdicts/shy/gad-vs-teacher@held_out.jsonl"))
    assert {(row["preference"], row["raw"], row["attempts"]) for row in rows} == {(None, REFUSAL, 2)}
    found = json.loads((run / "judging.json").read_text(encoding="utf-8"))["figures"][0]
    assert (found["win_rate"], found["unread"]) == (None, {"no letter on the first line": 10})


@pytest.mark.parametrize(("odds", "by"), [("refused", "letter"), ("left out", "letter"), ("given", "odds")])
def test_a_judge_without_log_probabilities_is_read_by_its_letter(
    again: tuple[Path, dict[str, Any], Path], odds: str, by: str
) -> None:
    folder, config, run = again
    with speaking(Voice(odds=odds)) as judge:
        config["judging"]["judges"] = [{"kind": "pairwise", "name": "plain", "api": api(judge.url)}]
        config["judging"]["pairs"] = PAIR
        code, lines, _ = gad("judge", write(folder / "run.yaml", config))
    assert code == 0, lines
    assert any(line.startswith("plain: 34 verdicts, 34 by ") and by in line for line in lines)
    preferences = {row["preference"] for row in read_jsonl(run / "verdicts/plain/gad-vs-teacher@held_out.jsonl")}
    assert preferences <= {0.0, 0.5, 1.0} if by == "letter" else not preferences & {0.0, 0.5, 1.0}


def test_replies_that_are_missing(again: tuple[Path, dict[str, Any], Path]) -> None:
    folder, config, run = again
    path = run / "replies/llama/held_out.jsonl"
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(rows[:3]), encoding="utf-8")
    code, lines, _ = gad("judge", write(folder / "run.yaml", config))
    assert code == 1
    assert "llama has no reply to 2 of 5 prompts of held_out" in only_error(lines)
    path.unlink()
    assert "llama has no replies in" in only_error(gad("judge", folder / "run.yaml")[1])
    config["judging"]["sets"].append({"kind": "own", "name": "late", "source": str(stories(folder))})
    said = only_error(gad("judge", write(folder / "run.yaml", config))[1])
    assert "judging.sets: 'late' as the run file has it is not in" in said
    assert "gad generate" in said


def test_sets_that_overlap_with_training(again: tuple[Path, dict[str, Any], Path]) -> None:
    folder, config, run = again
    train = runs.write_rows(folder / "seen.jsonl", 3)
    config["judging"] |= {"sets": [{"kind": "own", "name": "seen", "source": str(train)}], "pairs": PAIR}
    file = write(folder / "run.yaml", config)
    for verb in ("plan", "generate"):
        code, lines, _ = gad(verb, file)
        assert code == 2
        message = only_error(lines)
        assert "3 of 3 prompts of the set 'seen' are (nearly) in the training set" in message
        assert "judging.allow_overlap" in message
    config["judging"]["allow_overlap"] = True
    write(folder / "run.yaml", config)
    for verb in ("generate", "judge", "report"):
        code, lines, _ = gad(verb, file)
        assert code == 0, lines
    assert next(info for info in summary(run)["sets"] if info["name"] == "seen")["overlaps_training"]
    assert "overlaps training" in (run / "report.html").read_text(encoding="utf-8")
    other = runs.write_rows(folder / "seen.jsonl", 2)
    config["judging"]["sets"][0]["source"] = {"path": str(other), "limit": 2}
    code, lines, _ = gad("generate", write(folder / "run.yaml", config))
    assert code == 1
    assert "'seen' was another set of rows in this run" in only_error(lines)


MISTAKES: dict[str, tuple[str, str]] = {
    "two models": (
        "evaluation.models=[{kind: checkpoint, step: 2}, {kind: checkpoint, step: 2}]",
        "two models are called 'gad-2': their replies would mix; rename one",
    ),
    "the run's name": (
        "evaluation.models=[{kind: local, name: base, model: m}]",
        "'base' is the name of a model that the run makes: give this one another",
    ),
    "a path as name": ("evaluation.models=[{kind: local, name: ../x, model: m}]", "should match pattern"),
    "no such model": (
        "judging.pairs=[{first: gda}]",
        "no model 'gda' in this run; it has base, gad-2, llama",
    ),
    "the same pair": ("judging.pairs=[{first: gad, second: gad}]", "a pair of 'gad' with itself"),
    "two judges": (
        "judging.judges=[{kind: paper, api: {model: m}}, {kind: paper, api: {model: n}}]",
        "two judges are called 'paper'",
    ),
    "a set of the run's": (
        "judging.sets=[{kind: own, name: held_out, source: x.jsonl}]",
        "'held_out' is a set of the run's own",
    ),
    "no judges": ("judging=null", "has no judging: add the section `judging:`"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_the_run_file(name: str, again: tuple[Path, dict[str, Any], Path], voice: Voice) -> None:
    folder, config, _ = again
    override, said = MISTAKES[name]
    code, lines, _ = gad("judge", write(folder / "run.yaml", config), override)
    assert code == 2
    assert said in only_error(lines)
    assert voice.questions == 0


def test_a_model_without_a_chat_template_is_named_before_anything_is_trained(
    made: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    source, config, _ = made
    bare = shutil.copytree(source / "other", tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    models = [{"kind": "local", "name": "bare", "model": str(bare)}]
    config = config | {"name": "second", "evaluation": config["evaluation"] | {"models": models}, "judging": None}
    code, lines, _ = gad("run", write(tmp_path / "run.yaml", config | {"runs_dir": str(tmp_path / "runs")}))
    assert code == 1
    said = only_error(lines)
    assert f"evaluation.models, bare: the tokenizer of {bare} has no chat template" in said
    assert "or `format: alpaca`" in said
    assert not (tmp_path / "runs/second/checkpoints").exists()


def test_another_model_under_a_known_name(again: tuple[Path, dict[str, Any], Path], voice: Voice) -> None:
    folder, config, _ = again
    config["evaluation"]["models"][2]["api"]["model"] = "other"
    config["judging"]["sets"] = config["judging"]["sets"][:1]
    (folder / "runs/tiny/replies/far/stories.jsonl").unlink()
    code, lines, _ = gad("generate", write(folder / "run.yaml", config))
    assert code == 1
    assert "evaluation.models: 'far' was another model when its replies were written" in only_error(lines)
    assert voice.questions == 0


def test_an_endpoint_that_will_not_reply(again: tuple[Path, dict[str, Any], Path]) -> None:
    folder, config, run = again
    with speaking(Voice(say=lambda _: (400, "this prompt is not allowed"))) as refusing:
        config["evaluation"]["models"].append({"kind": "endpoint", "name": "prim", "api": api(refusing.url)})
        code, lines, _ = gad("generate", write(folder / "run.yaml", config))
    assert code == 1
    said = only_error(lines)
    assert "prim" in said
    assert "this prompt is not allowed" in said
    assert not list(read_jsonl(run / "replies/prim/held_out.jsonl"))


def test_money_and_keys(
    again: tuple[Path, dict[str, Any], Path], voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config, run = again
    shutil.rmtree(run / "verdicts")
    shutil.rmtree(run / "judges")
    judge = {"kind": "pairwise", "api": api(voice.url, max_cost_usd=0.005)}
    config["judging"] |= {"judges": [judge], "pairs": PAIR}
    code, lines, _ = gad("judge", write(folder / "run.yaml", config))
    assert code == 1
    assert "max_cost_usd=0.005" in only_error(lines)
    paid = sum(row["cost_usd"] for path in (run / "verdicts").rglob("*.jsonl") for row in read_jsonl(path))
    assert 0 < paid <= 0.005
    bought = voice.questions
    judge["api"] = api(voice.url, max_cost_usd=1.0)
    assert gad("judge", write(folder / "run.yaml", config))[0] == 0
    assert 0 < bought < voice.questions == 34
    monkeypatch.delenv("GAD_TEST_JUDGE", raising=False)
    endpoint = {"base_url": voice.url, "api_key_env": "GAD_TEST_JUDGE"}
    config["judging"]["judges"] = [
        {"kind": "pairwise", "name": "keyed", "api": api(voice.url) | {"endpoint": endpoint}}
    ]
    code, lines, _ = gad("judge", write(folder / "run.yaml", config))
    assert code == 2
    assert "GAD_TEST_JUDGE, which is not set" in only_error(lines)


def test_a_run_without_replies(tmp_path: Path, made: tuple[Path, dict[str, Any], list[str]]) -> None:
    config = made[1] | {"name": "young", "runs_dir": str(tmp_path / "runs")}
    config["judging"] = config["judging"] | {"sets": []}
    code, lines, _ = gad("judge", write(tmp_path / "run.yaml", config))
    assert code == 1
    assert "holds no sets and no replies yet: run `gad generate` first" in only_error(lines)


def test_a_vote_file_of_another_run(again: tuple[Path, dict[str, Any], Path]) -> None:
    folder, config, run = again
    file = write(folder / "run.yaml", config)
    assert gad("arena", file, "--export", folder / "sheet.html")[0] == 0
    sheet = list(read_jsonl(run / "arena/sheets.jsonl"))[-1]
    head = {"format": 1, "kind": "gad-arena-votes", "sheet": sheet["sheet"], "rater": "Ada", "votes": []}
    votes = folder / "votes.json"
    votes.write_text(json.dumps({**head, "run": "another"}), encoding="utf-8")
    code, lines, _ = gad("arena", file, "--import", votes)
    assert code == 2
    assert "these votes are on another run's replies" in only_error(lines)
    votes.write_text(json.dumps({**head, "run": sheet["run"]}), encoding="utf-8")
    assert gad("arena", file, "--import", votes)[0] == 0
