"""A teacher to ask, from the command line: what is bought, what may change, what a user may get wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from faults.teacher.batch_provider import BatchProvider
from faults.teacher.collecting import KEY_VARIABLE, check_no_key, rows
from faults.teacher.provider import KEY, PRICE_IN, PRICE_OUT, Provider
from gad.cli import app
from gad.config.loading import load
from gad.stages.collect import read_examples
from gad.stages.export import card
from gad.stages.summarize import summarize


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as made:
        yield made


def write_prompts(path: Path, *numbers: int, **more: Any) -> Path:
    lines = [json.dumps({"id": f"q{n}", "prompt": f"Question number {n}", **more}) for n in numbers]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run_file(folder: Path, url: str, **teacher: Any) -> Path:
    """20 prompts to train on, 4 held out, without replies."""
    config = {
        "name": "bought",
        "runs_dir": str(folder / "runs"),
        "data": {
            "train": str(write_prompts(folder / "train.jsonl", *range(20))),
            "held_out": str(write_prompts(folder / "held_out.jsonl", *range(100, 104))),
            "leak_check": None,
        },
        "student": {"model": "no/model"},
        "teacher": {
            "endpoint": {"base_url": url, "api_key_env": KEY_VARIABLE},
            "model": "m",
            "sampling": {"max_tokens": 64},
            "limits": {"first_pause_seconds": 0.005, "longest_pause_seconds": 0.02, "concurrency": 8},
            "prices": {"usd_per_million_input": PRICE_IN, "usd_per_million_output": PRICE_OUT},
            **teacher,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def gad(*words: object) -> tuple[int, list[str], str]:
    """Exit code, lines on standard error and all of standard output, in this process."""
    done = CliRunner().invoke(app, [str(word) for word in words], terminal_width=200)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert KEY not in done.output
    return done.exit_code, done.stderr.splitlines(), done.stdout


def failed(code: int, *words: object) -> str:
    """The one message of a command that ends with `code`."""
    ended, lines, _ = gad(*words)
    errors = [line for line in lines if line.startswith("error")]
    assert (ended, len(errors)) == (code, 1), lines
    assert lines[-1] == errors[0]
    assert "unexpected" not in errors[0]
    return errors[0]


def ids(path: Path) -> list[str]:
    return [row["id"] for row in rows(path)]


def test_prompts_without_replies_become_sets_with_where_they_are_from(tmp_path: Path, provider: Provider) -> None:
    provider.plan = lambda text, _: {"3": "null content", "5": "400 on this prompt"}.get(text.split()[-1])
    far = write_prompts(tmp_path / "far.jsonl", 200, 201, completion="A reply of its own.")
    file = run_file(tmp_path, provider.url)
    code, lines, _ = gad("collect", file, f"data.out_of_distribution={far}")
    assert code == 0, lines
    folder = tmp_path / "runs/bought"
    assert "out_of_distribution: 2 prompts have replies of their own, which are kept" in lines
    assert "train: 18 prompts, 2 rows left out" in lines
    assert len(provider.books.asked) == 24
    assert [example.replies[0].text for example in read_examples(folder / "sets/out_of_distribution.jsonl")] == [
        "A reply of its own."
    ] * 2
    assert ids(folder / "teacher.jsonl") == [f"q{n}" for n in range(20) if n not in (3, 5)]
    assert ids(folder / "sets/held_out.jsonl") == ["q100", "q101", "q102", "q103"]
    origins = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    assert origins["teachers"] == ["m"]
    assert origins["sets"]["train"]["dropped"] == [
        {"reason": "empty reply", "count": 1, "first": ["q3"]},
        {"reason": "no reply: bad request", "count": 1, "first": ["q5"]},
    ]
    collected = json.loads((folder / "collect.json").read_text(encoding="utf-8"))
    assert collected["spent_usd"] == pytest.approx(provider.books.usd)
    check_no_key(tmp_path)

    provider.plan = lambda *_: None
    assert gad("collect", file, f"data.out_of_distribution={far}", "--retry-failed")[0] == 0
    assert "q5" in ids(folder / "teacher.jsonl")
    assert sum(provider.books.asked.values()) == 25


def test_cost_and_provenance_reach_the_summary_and_the_card(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url)
    assert gad("collect", file)[0] == 0
    config, folder = load(file, ()), tmp_path / "runs/bought"
    summary = summarize(config, folder, ["gad"], {})
    assert summary["cost"] == {"teacher_usd": pytest.approx(provider.books.usd), "judge_usd": 0.0}
    assert (summary["teacher"]["models"], summary["teacher"]["bought"]) == ({"m": 24}, 24)
    assert "- 24 replies of 20" in card(config, folder)
    assert "asked of `m`, written by `m` (24)" in card(config, folder)
    code, _, out = gad("report", file)
    assert code == 0, out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"m at {provider.url}" in page


def test_a_plan_has_the_bill_with_an_interval_and_asks_nobody(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url, prices=None, model="gpt-4o-mini")
    code, _, out = gad("plan", file, "teacher.max_cost_usd=0.0001")
    assert code == 0
    assert not provider.books.asked
    text = " ".join(out.split())
    assert "replies 24; their prompts have about" in text
    assert "the package's table of 20" in text
    assert "bill about $0.0010 at 64 tokens a reply, the paper's mean from $0.0003 to $0.0" in text
    assert "max_cost_usd $0.0001: less than is expected" in text
    assert not (tmp_path / "runs").exists()


def test_a_collection_imports_no_torch(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url)
    code = (
        f"import sys; sys.argv = ['gad', 'collect', {str(file)!r}]\nfrom gad.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    assert len(ids(tmp_path / "runs/bought/teacher.jsonl")) == 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_waits_for_replies_under_way_and_the_same_command_goes_on(
    number: int, code: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "gad", "collect", str(tmp_path / "run.yaml")]
    with Provider(delay=0.5) as provider:
        file = run_file(tmp_path, provider.url)
        write_prompts(tmp_path / "train.jsonl", *range(400))
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while sum(provider.books.bought.values()) < 10:
            assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert "no more is sent; waiting for replies under way" in said
        assert said.splitlines()[-1].startswith("stopped on request, everything is saved")
        bought = sum(provider.books.bought.values())
        assert 10 <= bought < 300
        folder = tmp_path / "runs/bought"
        assert (folder / "teacher/ledger.jsonl").read_text(encoding="utf-8").count('"event":"reply"') == bought
        assert not (folder / "data.json").exists()
        assert "not all here: run `gad collect` first" in failed(1, "warmup", file)
        provider.delay = 0.0
        assert gad("collect", file)[0] == 0
        assert max(provider.books.bought.values()) == 1
    assert len(ids(folder / "teacher.jsonl")) == 400


def test_a_second_ctrl_c_gives_up_what_is_under_way_and_the_ledger_knows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gad", "collect", str(tmp_path / "run.yaml")]
    with Provider() as provider:
        provider.gate.clear()
        file = run_file(tmp_path, provider.url)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while provider.books.asked.total() < 8:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert (process.returncode, "Traceback" in said) == (130, False), said
        provider.gate.set()
        code, lines, _ = gad("collect", file)
    assert code == 0, lines
    assert any("8 requests were under way when the last collection ended: possibly paid" in line for line in lines)
    assert len(ids(tmp_path / "runs/bought/teacher.jsonl")) == 20


def test_prices_that_are_not_known_are_said_to_be(tmp_path: Path, provider: Provider) -> None:
    code, lines, _ = gad("collect", run_file(tmp_path, provider.url, prices=None))
    assert (code, lines[0]) == (0, "teacher: prices are not known: costs are counted as 0")


def test_parts_are_bought_side_by_side_and_come_together(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url)
    write_prompts(tmp_path / "train.jsonl", *range(40))
    command = [sys.executable, "-m", "gad", "collect", str(file), "--shard"]
    parts = [subprocess.Popen([*command, f"{n}/2"], stderr=subprocess.PIPE, text=True) for n in (1, 2)]
    for part in parts:
        _, said = part.communicate(timeout=60)
        assert part.returncode == 0, said
    assert sum(provider.books.bought.values()) == 44
    assert not (tmp_path / "runs/bought/data.json").exists()
    assert gad("collect", file)[0] == 0
    assert sum(provider.books.bought.values()) == 44
    assert len(ids(tmp_path / "runs/bought/teacher.jsonl")) == 40
    assert "give it as i/n" in failed(2, "collect", file, "--shard", "second")


FREE = ("teacher.limits.concurrency=3", "teacher.max_cost_usd=9", "teacher.prices.batch_factor=0.4", "teacher.api=chat")
CHOSEN_ANEW = ("data.filters.max_reply_words=3", "teacher.accept_models=[other]")
FIXED = (
    "teacher.model=other",
    "teacher.sampling.temperature=0.5",
    "teacher.system_prompt=Hi",
    "teacher=null",
    "seed=3",
)


def test_what_may_change_and_until_when(tmp_path: Path, provider: Provider) -> None:
    file, folder = run_file(tmp_path, provider.url), tmp_path / "runs/bought"
    assert gad("collect", file)[0] == 0
    for change in FREE:
        assert gad("collect", file, change)[0] == 0
    for change in CHOSEN_ANEW:
        message = failed(2, "collect", file, change)
        assert "train: no reply can be used (20 " in message
        assert "change data.filters and run `gad collect` again, which buys none twice" in message
        assert not (folder / "data.json").exists()
    assert gad("collect", file)[0] == 0
    assert gad("collect", file, "teacher.replies_per_prompt=2")[0] == 0
    assert gad("collect", file)[0] == 0
    assert sum(provider.books.asked.values()) == 48
    for change in FIXED:
        assert "was begun with another config" in failed(1, "collect", file, change)
    (folder / "metrics.jsonl").write_text('{"stage": "warmup"}\n', encoding="utf-8")
    before = (folder / "teacher.jsonl").read_bytes()
    for change in CHOSEN_ANEW:
        assert "was begun with another config" in failed(1, "collect", file, change)
    write_prompts(tmp_path / "train.jsonl", *range(30))
    code, lines, _ = gad("collect", file, FREE[0])
    assert (code, lines) == (0, ["collect: done before; what has been trained on stays as it is"])
    assert "copy" in failed(1, "collect", file, "--retry-failed")
    assert (folder / "teacher.jsonl").read_bytes() == before


def test_no_key(tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run_file(tmp_path, provider.url)
    monkeypatch.delenv(KEY_VARIABLE)
    message = failed(2, "collect", file)
    assert f"expected in the environment variable {KEY_VARIABLE}, which is not set" in message
    assert f"key in {KEY_VARIABLE}, which is not set" in " ".join(gad("plan", file)[2].split())


def test_a_key_in_the_run_file_is_refused_and_not_shown(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url)
    secret = "sk-abcdefghijklmnop"
    for key in ("api_key", "api_key_env", "headers.X-Api-Key"):
        message = failed(2, "collect", file, f"teacher.endpoint.{key}={secret}")
        assert f"teacher.endpoint.{key.split('.')[0]}" in message
        assert secret not in message


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("127.0.0.1:8080", 2, "is no address of an API: it begins with http:// or https://"),
        ("https://me:secret@host/v1", 2, "take out user, password"),
        ("https://host/v1?key=secret", 2, "take out user, password"),
        ("http://teacher.invalid/v1", 1, "http://teacher.invalid/v1 cannot be reached"),
        ("http://127.0.0.1:9/v1", 1, "http://127.0.0.1:9/v1 cannot be reached"),
    ],
)
def test_a_wrong_base_url(url: str, code: int, said: str, tmp_path: Path) -> None:
    message = failed(code, "collect", run_file(tmp_path, url))
    assert said in message
    assert "secret" not in message


def test_an_address_without_an_api(tmp_path: Path, provider: Provider) -> None:
    provider.plan = lambda *_: "a web page"
    assert "a web page was answered: is base_url right" in failed(1, "collect", run_file(tmp_path, provider.url))


def test_an_unknown_model_is_refused_in_the_providers_own_words(tmp_path: Path, provider: Provider) -> None:
    provider.plan = lambda *_: "404"
    message = failed(1, "collect", run_file(tmp_path, provider.url))
    assert "The model `m-9000` does not exist" in message


def test_a_price_that_is_missing_where_a_cap_is_set(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url, prices=None, max_cost_usd=5)
    for verb in ("plan", "collect"):
        assert "the price of 'm' is not known: set prices.usd_per_million_input" in failed(2, verb, file)
    assert not provider.books.asked


def test_a_cap_below_what_is_spent(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url)
    assert gad("collect", file)[0] == 0
    write_prompts(tmp_path / "train.jsonl", *range(21))
    assert "max_cost_usd=0.001: 0.00" in failed(2, "collect", file, "teacher.max_cost_usd=0.001")
    assert "raise max_cost_usd" in failed(2, "collect", file, "teacher.max_cost_usd=0.001")


def test_prompts_beyond_the_context_are_listed_and_the_others_bought(tmp_path: Path, provider: Provider) -> None:
    provider.plan = lambda text, _: "prompt too long" if text.endswith(" 7") else None
    file = run_file(tmp_path, provider.url)
    code, lines, _ = gad("collect", file)
    assert code == 0
    assert "teacher: 1 given up (1 prompt too long)" in lines
    (listed,) = rows(tmp_path / "runs/bought/teacher/given_up.jsonl")
    assert (listed["id"], listed["reason"]) == ("q7", "prompt too long")


def test_a_prompt_set_that_changed_is_followed(tmp_path: Path, provider: Provider) -> None:
    file, folder = run_file(tmp_path, provider.url), tmp_path / "runs/bought"
    assert gad("collect", file)[0] == 0
    write_prompts(tmp_path / "train.jsonl", *range(2, 25))
    code, lines, _ = gad("collect", file)
    assert code == 0
    (said,) = (line for line in lines if "prompts no longer asked for; kept in the ledger" in line)
    assert said.startswith("teacher: 2 replies")
    assert {"q0", "q1"} == set(said.rpartition("(")[2].rstrip(")").split(", "))
    assert ids(folder / "teacher.jsonl") == [f"q{n}" for n in range(2, 25)]
    assert sum(provider.books.asked.values()) == 29


def test_a_ledger_of_another_version(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url)
    assert gad("collect", file)[0] == 0
    ledger = tmp_path / "runs/bought/teacher/ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'{"gad_ledger": 1', b'{"gad_ledger": 2', 1))
    before = ledger.read_bytes()
    assert "is a ledger of format 2, and this gad reads format 1" in failed(1, "collect", file)
    assert ledger.read_bytes() == before


def test_leaks_that_stop_a_run_stop_it_before_anything_is_bought(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url)
    write_prompts(tmp_path / "held_out.jsonl", 3, 104)
    message = failed(2, "collect", file, "data.leak_check={action: stop, threshold: 0.99}")
    assert "prompts are in two sets, or nearly" in message
    assert not provider.books.asked


def test_batches_are_fetched_by_the_same_command(tmp_path: Path) -> None:
    with BatchProvider(("in_progress", "expired")) as provider:
        provider.fates = {"Question number 3": "bad request", "Question number 4": "expired"}
        file = run_file(tmp_path, provider.url, batch={"poll_seconds": 0.02, "requests_per_batch": 9})
        code, lines, _ = gad("collect", file, "--batch")
        assert code == 0, lines
        assert "teacher: 1 given up (1 bad request)" in lines
        assert "q4" in ids(tmp_path / "runs/bought/teacher.jsonl")
        assert len(provider.batches) == 4
        assert not provider.books.asked


@pytest.mark.parametrize("option", ["--retry-failed", "--batch"])
def test_options_about_buying_need_a_teacher(option: str, tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url)
    assert "has no `teacher`" in failed(2, "collect", file, "teacher=null", option)


def break_row(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + '{"prompt": 3}\n', encoding="utf-8")


@pytest.mark.parametrize("arguments", [(), ("--shard", "1/2")])
def test_a_bad_row_is_named_before_anything_is_bought(
    arguments: tuple[str, ...], tmp_path: Path, provider: Provider
) -> None:
    file = run_file(tmp_path, provider.url)
    break_row(tmp_path / "train.jsonl")
    assert "train.jsonl:21: wrong type: prompt is a number (3)" in failed(2, "collect", file, *arguments)
    assert not provider.books.asked
    assert gad("collect", file, "data.on_bad_rows=skip", *arguments)[0] == 0
    assert 0 < len(provider.books.bought) <= 24


def test_a_whole_run_buys_first(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url)
    code, lines, _ = gad("run", file)
    assert code == 1
    assert lines[0] == "teacher: prices from the run file"
    assert "no/model" in lines[-1]
    assert len(ids(tmp_path / "runs/bought/teacher.jsonl")) == 20


def test_a_fork_buys_nothing_again(tmp_path: Path, provider: Provider) -> None:
    file = run_file(tmp_path, provider.url)
    assert gad("collect", file)[0] == 0
    bought = provider.books.asked.total()
    assert bought == 24
    changes = ("name=second", "seed=0", "warmup=null", "teacher.limits.concurrency=2")
    code, _, shown = gad("fork", tmp_path / "runs" / "bought", file, *changes)
    assert (code, "taken over: the data, no stage" in shown) == (0, True)
    assert gad("collect", file, *changes)[0] == 0
    assert provider.books.asked.total() == bought
    first, second = ((tmp_path / "runs" / name / "teacher.jsonl").read_bytes() for name in ("bought", "second"))
    assert first == second
    assert "teacher.model differ from" in failed(
        1, "fork", tmp_path / "runs" / "bought", file, "name=third", "teacher.model=other"
    )
