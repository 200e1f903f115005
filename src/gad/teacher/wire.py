"""The two APIs as bytes: a request's body, and what a response's body says. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from gad.config.teacher import ApiConfig, AzureEndpoint
from gad.teacher.requests import ApiRequest, Usage, request_key

PATHS = {"chat": "/chat/completions", "responses": "/responses"}
_LONGEST_NAME = 200
_MOST_TOKENS, _MOST_USD, _LEAST_LOGPROB = 10**9, 1e6, 1e6
"""Of one reply. Beyond them a provider's figures are nonsense, and the reply counts as one without figures."""
_THINKING = re.compile(r"\A\s*<think>(.*?)(?:</think>|\Z)\s*", re.DOTALL)


class Malformed(Exception):
    """A response that is no reply. `reason` is one of few; `usage` is what it cost all the same, where it says so."""

    def __init__(self, reason: str, message: str, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.usage = usage


@dataclass(frozen=True, slots=True)
class Answer:
    """A response's body, read."""

    text: str
    model: str | None
    finish_reason: str | None
    usage: Usage | None
    reasoning: str | None
    refusal: str | None
    logprobs: Mapping[str, float] = field(default_factory=dict)
    stated_usd: float | None = None


def sampling_of(config: ApiConfig, request: ApiRequest) -> dict[str, Any]:
    """All that shapes a reply beside model, messages and sample index; what is left to the provider is absent."""
    settings = config.sampling
    chosen = {
        "max_tokens": request.max_tokens or settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": settings.seed,
        "stop": list(settings.stop) or None,
        "reasoning_effort": settings.reasoning_effort,
        "top_logprobs": request.top_logprobs,
        "extra": dict(settings.extra) or None,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def key_of(config: ApiConfig, request: ApiRequest) -> str:
    """The request's key."""
    return request_key(config.model, request.messages, sampling_of(config, request), request.sample)


def request_body(config: ApiConfig, request: ApiRequest) -> dict[str, Any]:
    """What is posted."""
    sampling = sampling_of(config, request)
    extra = sampling.pop("extra", {})
    messages = [message.as_dict() for message in request.messages]
    if config.api == "responses":
        return {**_responses_body(config, sampling, messages), **extra}
    body: dict[str, Any] = {"model": config.model, "messages": messages}
    body[_max_tokens_name(config)] = sampling.pop("max_tokens")
    if "seed" in sampling:
        sampling["seed"] += request.sample
    if "top_logprobs" in sampling:
        body["logprobs"] = True
    return {**body, **sampling, **extra}


def _max_tokens_name(config: ApiConfig) -> str:
    endpoint = config.endpoint
    if endpoint.max_tokens_parameter != "auto":
        return endpoint.max_tokens_parameter
    assert not isinstance(endpoint, AzureEndpoint)
    host = urlsplit(endpoint.base_url).hostname or ""
    official = host == "api.openai.com" or host.endswith((".api.openai.com", ".openai.azure.com"))
    return "max_completion_tokens" if official else "max_tokens"


def _responses_body(config: ApiConfig, sampling: dict[str, Any], messages: Sequence[dict[str, str]]) -> dict[str, Any]:
    body: dict[str, Any] = {"model": config.model, "input": list(messages), "store": False}
    body["max_output_tokens"] = sampling["max_tokens"]
    if "reasoning_effort" in sampling:
        body["reasoning"] = {"effort": sampling["reasoning_effort"]}
    if "top_logprobs" in sampling:
        body["include"] = ["message.output_text.logprobs"]
    return {**body, **{name: sampling[name] for name in ("temperature", "top_p", "top_logprobs") if name in sampling}}


def read_body(api: str, content: bytes) -> Answer:
    """Read a successful response. Raises Malformed for all that is no reply."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Malformed("malformed reply", f"the response is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Malformed("malformed reply", f"the response is a JSON {type(body).__name__}, not an object")
    try:
        return _responses(body) if api == "responses" else _chat(body)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        message = f"the response has an unexpected form ({type(error).__name__}: {error})"
        raise Malformed("malformed reply", message, _usage_or_none(body)) from None


def _chat(body: dict[str, Any]) -> Answer:
    if "error" in body and not body.get("choices"):
        raise Malformed("error in a reply", error_text(body), _usage_or_none(body))
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Malformed("no choices", "the response has no choices", _usage_or_none(body))
    message = choices[0]["message"]
    if choices[0].get("error") and not message.get("content"):
        raise Malformed("error in a reply", error_text(choices[0]), _usage_or_none(body))
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    text, thought = split_thinking(_text(message.get("content")))
    return Answer(
        text=text,
        model=_name(body.get("model")),
        finish_reason=_name(choices[0].get("finish_reason")),
        usage=_usage_or_none(body),
        reasoning=_joined(reasoning if isinstance(reasoning, str) else None, thought),
        refusal=_optional_text(message.get("refusal")),
        logprobs=_first_logprobs(_content(choices[0].get("logprobs"))),
        stated_usd=_stated(body),
    )


def _responses(body: dict[str, Any]) -> Answer:
    if body.get("error"):
        raise Malformed("error in a reply", error_text(body), _usage_or_none(body))
    parts = [part for item in body["output"] if item["type"] == "message" for part in item["content"]]
    if not parts and body.get("status") not in ("incomplete", "completed"):
        raise Malformed("no choices", f"the response has no message; its status is {body.get('status')!r}")
    thoughts = [item for item in body["output"] if item["type"] == "reasoning"]
    summary = [part["text"] for item in thoughts for part in [*item.get("summary", ()), *(item.get("content") or ())]]
    texts = [part for part in parts if part["type"] == "output_text"]
    text, thought = split_thinking("".join(_text(part["text"]) for part in texts))
    reason = (body.get("incomplete_details") or {}).get("reason")
    refusal = "".join(part["refusal"] for part in parts if part["type"] == "refusal")
    return Answer(
        text=text,
        model=_name(body.get("model")),
        finish_reason={None: "stop", "max_output_tokens": "length"}.get(reason, reason),
        usage=_usage_or_none(body),
        reasoning=_joined("\n".join(summary) or None, thought),
        refusal=refusal or None,
        logprobs=_first_logprobs(texts[0].get("logprobs") if texts else None),
        stated_usd=_stated(body),
    )


def split_thinking(text: str) -> tuple[str, str | None]:
    """A reply and the thoughts that open it in <think> tags; thoughts without an end leave no reply."""
    found = _THINKING.match(text)
    return (text[found.end() :], found.group(1).strip() or None) if found else (text, None)


def _joined(first: str | None, second: str | None) -> str | None:
    return "\n".join(part for part in (first, second) if part) or None


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type", "text") == "text")
    if not isinstance(content, str):
        raise TypeError(f"content is {type(content).__name__}")
    return content


def _optional_text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _name(value: Any) -> str | None:
    """Of a model, or of a reason: it is shown and counted, so it is short and has nothing that cannot be seen."""
    return visible(value)[:_LONGEST_NAME] if isinstance(value, str) and value else None


def visible(text: str) -> str:
    """On one line; what a terminal would obey, what cannot be seen and half characters are written out (\\x1b)."""
    if text.isprintable() and " " not in text:
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in " ".join(text.split())
    )


def _usage_or_none(body: Mapping[str, Any]) -> Usage | None:
    usage = body.get("usage")
    if not isinstance(usage, Mapping):
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    if not _is_count(prompt) or not _is_count(completion):
        return None
    read = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    written = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    return Usage(prompt, completion, _detail(read, "cached_tokens"), _detail(written, "reasoning_tokens"))


def _detail(details: Any, name: str) -> int:
    value = details.get(name) if isinstance(details, Mapping) else None
    return value if _is_count(value) else 0


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS


def _stated(body: Mapping[str, Any]) -> float | None:
    """The price that some gateways (OpenRouter) state in the usage."""
    usage = body.get("usage")
    cost = usage.get("cost") if isinstance(usage, Mapping) else None
    if not isinstance(cost, int | float) or isinstance(cost, bool):
        return None
    return float(cost) if 0 <= cost <= _MOST_USD else None


def _first_logprobs(content: Any) -> dict[str, float]:
    """What is not as it should be is as good as absent: the reply beside it was paid for."""
    first = content[0] if isinstance(content, list) and content else None
    tops = first.get("top_logprobs") if isinstance(first, Mapping) else None
    return {
        top["token"]: float(top["logprob"])
        for top in (tops if isinstance(tops, list) else ())
        if isinstance(top, Mapping) and isinstance(top.get("token"), str) and _is_logprob(top.get("logprob"))
    }


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LEAST_LOGPROB <= value <= 1e-3


def _content(logprobs: Any) -> Any:
    return logprobs.get("content") if isinstance(logprobs, Mapping) else None


def error_text(body: Any) -> str:
    """The provider's own message out of an error's body, on one line and with nothing in it that cannot be seen."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, list) and error:
        error = error[0].get("error", error[0]) if isinstance(error[0], Mapping) else error[0]
    message = error.get("message") or error.get("detail") if isinstance(error, Mapping) else error
    return visible(str(message if message is not None else error)[:2000])[:500]
