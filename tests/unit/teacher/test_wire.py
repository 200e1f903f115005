from __future__ import annotations

import json
from typing import Any

import pytest

from gad.config.teacher import ApiConfig
from gad.records import Message
from gad.teacher.requests import ApiRequest, Usage, request_key
from gad.teacher.wire import Malformed, key_of, read_body, request_body, split_thinking

TURNS = (
    Message("system", "Be kind."),
    Message("user", "Hi"),
    Message("assistant", "Hello."),
    Message("user", "Ça va?"),
)


def config(**more: Any) -> ApiConfig:
    return ApiConfig.model_validate({"model": "gpt-x", "endpoint": {"base_url": "http://127.0.0.1:1/v1"}, **more})


def chat(**message: Any) -> bytes:
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "Fine.", **message}}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    return json.dumps({"model": "gpt-x-1", "choices": [choice], "usage": usage}).encode()


def test_a_chat_body_has_all_that_was_chosen_and_nothing_else() -> None:
    sampling = {"max_tokens": 7, "temperature": 0.5, "seed": 3, "stop": ["END"], "extra": {"top_k": 5}}
    body = request_body(config(sampling=sampling), ApiRequest("p", TURNS, sample=2, top_logprobs=4))
    assert body == {
        "model": "gpt-x",
        "messages": [message.as_dict() for message in TURNS],
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 5,
        "stop": ["END"],
        "logprobs": True,
        "top_logprobs": 4,
        "top_k": 5,
    }
    assert set(request_body(config(), ApiRequest("p", TURNS))) == {"model", "messages", "max_tokens"}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://api.openai.com.example.org/v1", "max_tokens"),
        ("http://127.0.0.1:8080/v1", "max_tokens"),
    ],
)
def test_the_limit_is_called_as_the_endpoint_calls_it(url: str, name: str) -> None:
    body = request_body(config(endpoint={"base_url": url}), ApiRequest("p", TURNS, max_tokens=5))
    assert body[name] == 5
    assert len({"max_tokens", "max_completion_tokens"} & set(body)) == 1


def test_a_responses_body() -> None:
    sampling = {"max_tokens": 7, "temperature": 0.5, "reasoning_effort": "low"}
    body = request_body(config(api="responses", sampling=sampling), ApiRequest("p", TURNS))
    assert body == {
        "model": "gpt-x",
        "input": [message.as_dict() for message in TURNS],
        "store": False,
        "max_output_tokens": 7,
        "reasoning": {"effort": "low"},
        "temperature": 0.5,
    }


def test_keys_are_what_they_always_were() -> None:
    """A changed key would buy every reply again."""
    assert request_key("m", (Message("user", "Hi"),), {"max_tokens": 5}, 0) == "ee00e3e5f3080043356787d6996168a9"
    assert key_of(config(), ApiRequest("p", TURNS)) == "aae4a1317378a0c2465bb2941f8215fe"


def test_a_key_depends_on_everything_that_shapes_the_reply_and_on_nothing_else() -> None:
    base = key_of(config(), ApiRequest("p", TURNS))
    assert key_of(config(), ApiRequest("another id", TURNS)) == base
    assert key_of(config(limits={"concurrency": 3}, max_cost_usd=5.0), ApiRequest("p", TURNS)) == base
    assert key_of(config(endpoint={"base_url": "http://127.0.0.1:2/v1"}), ApiRequest("p", TURNS)) == base
    others = [
        key_of(config(), ApiRequest("p", TURNS, sample=1)),
        key_of(config(), ApiRequest("p", TURNS[1:])),
        key_of(config(), ApiRequest("p", TURNS, max_tokens=5)),
        key_of(config(), ApiRequest("p", TURNS, top_logprobs=5)),
        key_of(config(model="gpt-y"), ApiRequest("p", TURNS)),
        *(
            key_of(config(sampling={name: value}), ApiRequest("p", TURNS))
            for name, value in {
                "temperature": 0.0,
                "top_p": 0.9,
                "seed": 0,
                "stop": ["a"],
                "reasoning_effort": "low",
                "max_tokens": 9,
                "extra": {"top_k": 1},
            }.items()
        ),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_a_chat_reply() -> None:
    answer = read_body("chat", chat(reasoning_content="Hm."))
    assert (answer.text, answer.reasoning, answer.model, answer.finish_reason) == ("Fine.", "Hm.", "gpt-x-1", "stop")
    assert answer.usage == Usage(9, 3, cached=4)
    assert answer.refusal is None


def test_content_in_parts_null_content_and_refusals() -> None:
    parts = [{"type": "text", "text": "A"}, {"type": "image_url"}, {"type": "text", "text": "B"}]
    assert read_body("chat", chat(content=parts)).text == "AB"
    empty = read_body("chat", chat(content=None, refusal="I will not."))
    assert (empty.text, empty.refusal) == ("", "I will not.")


@pytest.mark.parametrize(
    ("text", "reply", "thought"),
    [
        ("<think>Let me see.</think>\n\nFour.", "Four.", "Let me see."),
        ("\n<think>\n</think>\nFour.", "Four.", None),
        ("<think>No end", "", "No end"),
        ("Tags like <think>x</think> stay.", "Tags like <think>x</think> stay.", None),
    ],
)
def test_thoughts_are_kept_apart(text: str, reply: str, thought: str | None) -> None:
    assert split_thinking(text) == (reply, thought)
    answer = read_body("chat", chat(content=text))
    assert (answer.text, answer.reasoning) == (reply, thought)


def test_first_tokens_odds() -> None:
    top = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2}]
    body = json.loads(chat())
    body["choices"][0]["logprobs"] = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": top}]}
    assert read_body("chat", json.dumps(body).encode()).logprobs == {"A": -0.1, "B": -2.0}


def response(**more: Any) -> bytes:
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Thinking."}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Fine"}, {"type": "output_text", "text": "."}]},
    ]
    usage = {"input_tokens": 9, "output_tokens": 30, "output_tokens_details": {"reasoning_tokens": 20}}
    return json.dumps({"model": "o9", "status": "completed", "output": output, "usage": usage, **more}).encode()


def test_a_reply_of_the_responses_api() -> None:
    answer = read_body("responses", response())
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("Fine.", "Thinking.", "stop")
    assert answer.usage == Usage(9, 30, reasoning=20)
    for reason, finish in (("max_output_tokens", "length"), ("content_filter", "content_filter")):
        cut = response(status="incomplete", incomplete_details={"reason": reason})
        assert read_body("responses", cut).finish_reason == finish
    refused = response(output=[{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}])
    assert read_body("responses", refused).refusal == "No."


@pytest.mark.parametrize(
    ("api", "content", "reason"),
    [
        ("chat", b"", "malformed reply"),
        ("chat", b"<html>", "malformed reply"),
        ("chat", b"[]", "malformed reply"),
        ("chat", b"{}", "no choices"),
        ("chat", b'{"choices": []}', "no choices"),
        ("chat", b'{"choices": "x"}', "no choices"),
        ("chat", b'{"choices": [{}]}', "malformed reply"),
        ("chat", b'{"choices": [{"message": {"content": 5}}]}', "malformed reply"),
        ("chat", b'{"choices": [null]}', "malformed reply"),
        ("chat", b'{"error": {"message": "no"}}', "error in a reply"),
        ("chat", b"[" * 100_000, "malformed reply"),
        ("responses", b"{}", "malformed reply"),
        ("responses", b'{"output": [], "status": "failed"}', "no choices"),
        ("responses", b'{"error": {"message": "no"}}', "error in a reply"),
    ],
)
def test_what_is_no_reply_is_said_to_be_none(api: str, content: bytes, reason: str) -> None:
    with pytest.raises(Malformed) as caught:
        read_body(api, content)
    assert caught.value.reason == reason


def test_a_reply_without_choices_still_cost_what_it_says() -> None:
    with pytest.raises(Malformed) as caught:
        read_body("chat", b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}}')
    assert caught.value.usage == Usage(5, 0)


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": 2}, {"prompt_tokens": "3"}, [1]]
)
def test_a_usage_that_makes_no_sense_is_none(usage: Any) -> None:
    body = json.loads(chat())
    body["usage"] = usage
    assert read_body("chat", json.dumps(body).encode()).usage is None
