"""Collecting against a small server: what is asked, what is written, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from faults.teacher.collecting import KEY_VARIABLE, Recorder, config_for, prompts, rows, run
from faults.teacher.provider import KEY, Provider
from gad.config.data import Filters
from gad.config.teacher import TeacherConfig
from gad.errors import ConfigError, RunFolderError, TeacherError
from gad.progress import Lines
from gad.records import Message, Prompt
from gad.stages.collect import read_examples
from gad.stages.collect_api import collect
from gad.teacher.caller import ApiCaller
from gad.teacher.files import LeftOut
from gad.teacher.money import Bill
from gad.teacher.progress import Display, note
from gad.teacher.requests import ApiRequest, GivenUp, Reply
from gad.teacher.shards import Shard
from gad.teacher.watching import Snapshot


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def test_rows_have_the_columns_and_examples_are_read_from_them(tmp_path: Path) -> None:
    asked = [
        Prompt(
            "a",
            (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hm."), Message("user", "So?")),
        ),
        Prompt.from_text("b", "Ça va?"),
    ]
    with Provider() as provider:
        config = config_for(provider.url, system_prompt="Be brief.", replies_per_prompt=2, sampling={"seed": 5})
        summary, _ = run(config, asked, tmp_path)
    sent = {body["messages"][-1]["content"]: body["messages"] for body in provider.books.bodies}
    assert sent["So?"] == [message.as_dict() for message in asked[0].messages]
    assert sent["Ça va?"][0] == {"role": "system", "content": "Be brief."}
    assert sorted(body["seed"] for body in provider.books.bodies) == [5, 5, 6, 6]
    assert summary.kept == 4
    found = rows(tmp_path / "teacher.jsonl")
    assert [(row["id"], row["sample"]) for row in found] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    contract = {"id", "prompt", "completion", "model", "finish_reason", "usage", "cost_usd", "created", "request_hash"}
    assert contract <= set(found[0])
    assert found[2]["prompt"] == [{"role": "user", "content": "Ça va?"}]
    assert found[0]["request_id"] == "req-So?"
    examples = read_examples(tmp_path / "teacher.jsonl")
    assert [(example.prompt, len(example.replies)) for example in examples] == [(asked[0], 2), (asked[1], 2)]
    assert provider.books.headers[0]["authorization"] == f"Bearer {KEY}"
    assert not any(name.startswith("x-stainless") for name in provider.books.headers[0])
    written = json.loads((tmp_path / "collect.json").read_text(encoding="utf-8"))
    assert written["sets"]["train"]["kept"] == written["bought"] == 4
    assert written["first_reply"] == min(row["created"] for row in found)
    assert (written["model"], written["endpoint"]) == ("m", provider.url)


def test_added_prompts_are_collected_and_removed_ones_are_kept_and_named(tmp_path: Path) -> None:
    with Provider() as provider:
        run(config_for(provider.url), prompts(10), tmp_path)
        summary, progress = run(config_for(provider.url), prompts(10, start=4), tmp_path)
        assert sum(provider.books.asked.values()) == 14
    assert (summary.kept, summary.removed, summary.removed_ids[:1]) == (10, 4, summary.removed_ids[:1])
    assert {row["id"] for row in rows(tmp_path / "teacher" / "removed.jsonl")} == {"p0", "p1", "p2", "p3"}
    assert {row["id"] for row in rows(tmp_path / "teacher.jsonl")} == {f"p{n}" for n in range(4, 14)}
    assert any("4 replies are to prompts no longer asked for" in line for line in progress.lines)


def test_a_reply_with_half_a_character_is_kept_in_the_ledger_and_left_out(tmp_path: Path) -> None:
    with Provider(lambda text, _: "half a character" if text.endswith(" 2") else None) as provider:
        for _ in range(2):
            summary, _ = run(config_for(provider.url), prompts(4), tmp_path)
            assert (summary.kept, summary.left_out) == (3, {"half a character": 1})
        assert sum(provider.books.asked.values()) == 4
    (listed,) = rows(tmp_path / "teacher" / "left_out.jsonl")
    assert listed["text"] == "So ? it goes"


def test_the_same_words_are_bought_once(tmp_path: Path) -> None:
    asked = [*prompts(5), *(Prompt.from_text(f"again-{n}", f"Question number {n}") for n in range(5))]
    with Provider(delay=0.01) as provider:
        summary, _ = run(config_for(provider.url), asked, tmp_path)
        assert sum(provider.books.asked.values()) == 5
    assert (summary.kept, summary.repeated) == (5, 5)


def test_a_prompt_of_two_sets_is_bought_once_and_stands_in_both(tmp_path: Path) -> None:
    with Provider(lambda text, _: "400 on this prompt" if text.endswith(" 7") else None) as provider:
        sets = {"train": prompts(6), "held_out": [Prompt.from_text("h", "Question number 3"), *prompts(3, start=6)]}
        summary = collect(config_for(provider.url), sets, tmp_path, filters=Filters(), progress=Recorder())
        assert sum(provider.books.asked.values()) == 9
    assert (summary.requested, summary.repeated, summary.bought) == (9, 1, 9)
    assert [row["id"] for row in rows(tmp_path / "teacher.jsonl")] == [f"p{n}" for n in range(6)]
    held_out = rows(tmp_path / "sets" / "held_out.jsonl")
    assert [row["id"] for row in held_out] == ["h", "p6", "p8"]
    assert held_out[0]["completion"] == "Here is a reply to: Question number 3"
    assert {name: (each.kept, each.given_up) for name, each in summary.sets.items()} == {
        "train": (6, {}),
        "held_out": (3, {"bad request": LeftOut(1, ["p7"])}),
    }
    (listed,) = rows(tmp_path / "teacher" / "given_up.jsonl")
    assert (listed["set"], listed["id"]) == ("held_out", "p7")


def test_prompts_that_can_be_read_once_will_do(tmp_path: Path) -> None:
    with Provider() as provider:
        summary = run(config_for(provider.url), iter(prompts(20)), tmp_path)[0]
    assert summary.kept == 20
    assert not list((tmp_path / "teacher").glob(".prompts*"))


def test_parts_on_several_machines_come_together(tmp_path: Path) -> None:
    with Provider() as provider:
        config = config_for(provider.url)
        parts = [run(config, prompts(60), tmp_path, shard=Shard(n, 3))[0] for n in (1, 2, 3)]
        assert sum(part.requested for part in parts) == 60
        assert min(part.kept for part in parts) > 8
        assert not (tmp_path / "teacher.jsonl").exists()
        whole, _ = run(config, prompts(60), tmp_path)
        assert (whole.kept, whole.removed) == (60, 0)
        assert max(provider.books.asked.values()) == 1
        assert whole.spent_usd == pytest.approx(provider.books.usd)
        more, _ = run(config, prompts(70), tmp_path)
        assert more.kept == 70
        assert sum(provider.books.asked.values()) == 70


def test_shards_are_read_from_text() -> None:
    assert Shard.parse(" 2/8 ") == Shard(2, 8)
    for text in ("0/3", "4/3", "x", "1/0", "1-2", "-1/3"):
        with pytest.raises(ConfigError, match="--shard"):
            Shard.parse(text)


def test_nothing_to_buy_needs_no_key_and_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Provider() as provider:
        config = config_for(provider.url)
        run(config, prompts(5), tmp_path)
    monkeypatch.delenv(KEY_VARIABLE)
    assert run(config, prompts(5), tmp_path)[0].kept == 5
    with pytest.raises(ConfigError, match=f"environment variable {KEY_VARIABLE}, which is not set"):
        run(config, prompts(6), tmp_path)
    assert len(rows(tmp_path / "teacher.jsonl")) == 5


def test_a_cap_below_what_is_spent_is_the_inputs_fault(tmp_path: Path) -> None:
    with Provider() as provider:
        run(config_for(provider.url), prompts(20), tmp_path)
        with pytest.raises(ConfigError, match=r"max_cost_usd=0.001: 0.00\d+ USD are spent.*raise max_cost_usd"):
            run(config_for(provider.url, max_cost_usd=0.001), prompts(21), tmp_path)
        assert sum(provider.books.asked.values()) == 20
        assert run(config_for(provider.url, max_cost_usd=0.001), prompts(20), tmp_path)[0].kept == 20


def test_a_wrong_address_and_an_unknown_model_show_what_was_answered(tmp_path: Path) -> None:
    with Provider(lambda *_: "404") as provider, pytest.raises(TeacherError, match="`m-9000` does not exist"):
        run(config_for(provider.url), prompts(5), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": {"base_url": "127.0.0.1:8080"}}, "begins with http"),
        ({"endpoint": {"base_url": "https://user:secret@host/v1"}}, "take out user, password"),
        ({"endpoint": {"base_url": "https://host/v1?api_key=abc"}}, "environment variable"),
        ({"endpoint": {"headers": {"X-Api-Key": "abc"}}}, "looks like a secret"),
        ({"endpoint": {"api_key": "sk-abc"}}, "api_key"),
        ({"sampling": {"max_tokens": 0}}, "max_tokens"),
        ({"sampling": {"extra": {"max_tokens": 5}}}, "extra.max_tokens"),
        ({"api": "responses", "sampling": {"seed": 1}}, "seed"),
        ({"replies_per_prompt": 0}, "replies_per_prompt"),
        ({"languages": ["English"]}, "languages"),
        ({"max_cost_usd": -1}, "max_cost_usd"),
        ({"limits": {"concurency": 3}}, "concurency"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        TeacherConfig.model_validate({"model": "m", **settings})
    assert "secret@" not in str(caught.value).split("input_value")[0]


def test_azure_and_openai_are_told_apart() -> None:
    azure = TeacherConfig.model_validate(
        {
            "model": "deployment",
            "endpoint": {"azure_endpoint": "https://x.openai.azure.com", "api_version": "2024-10-21"},
        }
    )
    assert azure.endpoint.kind == "azure"
    assert TeacherConfig(model="m").endpoint.kind == "openai"


def test_the_responses_api_from_end_to_end(tmp_path: Path) -> None:
    with Provider() as provider:
        summary, _ = run(config_for(provider.url, api="responses"), prompts(5), tmp_path)
    assert provider.books.routes == {"POST /v1/responses"}
    assert summary.kept == 5
    assert summary.spent_usd == pytest.approx(provider.books.usd)
    assert rows(tmp_path / "teacher.jsonl")[3]["completion"] == "Here is a reply to: Question number 3"


def test_azure_from_end_to_end(tmp_path: Path) -> None:
    with Provider() as provider:
        azure = {
            "azure_endpoint": provider.url.removesuffix("/v1"),
            "api_version": "2024-10-21",
            "api_key_env": KEY_VARIABLE,
        }
        summary, _ = run(config_for(provider.url, endpoint=azure), prompts(5), tmp_path)
    assert provider.books.routes == {"POST /openai/deployments/m/chat/completions?api-version=2024-10-21"}
    assert provider.books.headers[0]["api-key"] == KEY
    assert {name for body in provider.books.bodies for name in body} == {"model", "messages", "max_completion_tokens"}
    assert summary.kept == 5


def test_the_key_goes_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-mine")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key-0123456789")
    with Provider() as provider:
        config = config_for(provider.url, endpoint={"base_url": provider.url, "api_key_env": None})
        run(config, prompts(3), tmp_path)
    assert "of-mine" not in str(provider.books.headers)
    assert "another-key" not in str(provider.books.headers)


def test_the_seam_yields_one_outcome_for_every_request_known_or_new(tmp_path: Path) -> None:
    def asked(count: int) -> list[ApiRequest]:
        return [ApiRequest(f"q{n}", (Message("user", f"Question number {n}"),)) for n in range(count)]

    with Provider(lambda text, _: "400 on this prompt" if text.endswith(" 3") else None) as provider:
        with ApiCaller(config_for(provider.url), tmp_path) as caller:
            first = list(caller.outcomes(asked(10)))
            assert caller.bill.held == pytest.approx(0.0, abs=1e-12)
            assert caller.bill.spent == pytest.approx(provider.books.usd)
        with ApiCaller(config_for(provider.url), tmp_path) as caller:
            second = list(caller.outcomes([*asked(12), *asked(2)]))
        assert sum(provider.books.asked.values()) == 12
    assert {type(each) for each in first} == {Reply, GivenUp}
    assert sorted(each.id for each in second) == sorted([*(f"q{n}" for n in range(12)), "q0", "q1"])
    assert sum(each.known for each in second) == 12
    given_up = next(each for each in second if isinstance(each, GivenUp))
    assert (given_up.id, given_up.reason) == ("q3", "bad request")


def test_a_caller_left_early_waits_for_what_it_paid_for(tmp_path: Path) -> None:
    asked = [ApiRequest(f"q{n}", (Message("user", f"Question number {n}"),)) for n in range(100)]
    with Provider(delay=0.1) as provider, ApiCaller(config_for(provider.url), tmp_path) as caller:
        for _ in caller.outcomes(asked):
            break
        assert caller.bill.held == pytest.approx(0.0, abs=1e-12)
        assert caller.bill.maybe == 0.0
        assert 0 < sum(provider.books.bought.values()) < 100


def test_an_error_in_the_requests_is_raised_after_what_is_under_way(tmp_path: Path) -> None:
    def asked() -> Any:
        yield ApiRequest("a", (Message("user", "Hi"),))
        raise ValueError("broken prompts")

    with Provider(delay=0.1) as provider, ApiCaller(config_for(provider.url), tmp_path) as caller:
        with pytest.raises(ValueError, match="broken prompts"):
            list(caller.outcomes(asked()))
        assert caller.bill.spent > 0


def test_a_second_owner_in_one_process_is_refused(tmp_path: Path) -> None:
    with (
        Provider() as provider,
        ApiCaller(config_for(provider.url), tmp_path),
        pytest.raises(RunFolderError, match=f"process {os.getpid()}"),
    ):
        ApiCaller(config_for(provider.url), tmp_path)


def test_the_note_beside_the_bar() -> None:
    quiet = Snapshot(5, 0, 0, 0, 0, 0, 2.345, Bill(0.0123))
    assert note(quiet, None) == "2.3/s, $0.0123"
    busy = Snapshot(5, 1, 2, 3, 4, 6, 120.0, Bill(12.3, 0.5))
    money = "120.0/s, $12.30 of $50.00, +$0.5000 possibly"
    assert note(busy, 50.0) == f"{money}, 2 under way, 3 waiting, 4 tried again, 6 slow down (429), 1 given up"


def test_plain_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(Lines(), "collect", 10, 4, None) as display:
        display.watch(Snapshot(2, 0, 1, 0, 0, 0, 1.0, Bill(0.5)))
        display.watch(Snapshot(5, 1, 0, 0, 0, 0, 1.0, Bill(1.5)))
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("collect: 6/10  1.0/s, $0.5000, 1 under way")
    assert last.startswith("collect: 10/10  1.0/s, $1.50, 1 given up")


def test_the_collector_is_light() -> None:
    heavy = "torch transformers openai sklearn plotly httpx2 rensa"
    code = f"import sys, gad.stages.collect_api; print([n for n in {heavy.split()!r} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
