"""The lines of a ledger. Each begins alike, so that a million of them can be read without parsing the rest.

    {"gad_ledger":1,"created":...}                                                     the first line
    {"key":K,"event":"sent","attempt":N,"usd":0,"maybe_usd":HELD,...}                  a request goes out
    {"key":K,"event":"batched","attempt":N,"usd":0,"maybe_usd":HELD,"batch":B,...}     ... as part of a batch
    {"key":K,"event":"reply","attempt":N,"usd":COST,"maybe_usd":0,"model":M,...}       a reply, paid for
    {"key":K,"event":"failed","attempt":N,"usd":0,"maybe_usd":HELD,"reason":R,...}     no reply; to be asked again
    {"key":K,"event":"lost",...}                                                       under way when its process ended
    {"key":K,"event":"givenup",...}                                                    no reply, not asked again

usd: what it cost. maybe_usd: what it may have cost beyond that. The first "sent" or "batched" line of a key holds the
request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gad.records import Message
from gad.teacher.requests import ApiRequest, GivenUp, Reply, Usage

VERSION = 1
HEAD = re.compile(
    rb'\{"key":"(.{32})","event":"([a-z]+)","attempt":\d+,"usd":([0-9.e+-]+),"maybe_usd":([0-9.e+-]+)[,}]'
    rb'(?:"model":("[^"\\]*(?:\\.[^"\\]*)*"|null))?',
    re.DOTALL,
)
"""key, event, usd, maybe_usd, and the model of a reply. Whether the key is one shows when it is read."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _line(key: str, event: str, attempt: int, usd: float, maybe: float, rest: Mapping[str, Any]) -> bytes:
    head = {"key": key, "event": event, "attempt": attempt, "usd": round(usd, 12), "maybe_usd": round(maybe, 12)}
    # A lone surrogate has no UTF-8; models do write them.
    return _encode({**head, **rest}).encode("utf-8", "backslashreplace") + b"\n"


def sent_line(
    key: str,
    request: ApiRequest,
    attempt: int,
    held: float,
    time: float,
    asked: Mapping[str, Any] | None,
    batch: str = "",
) -> bytes:
    """asked: model and sampling, for the first line of a key; None where the ledger has the request already."""
    rest: dict[str, Any] = {"batch": batch} if batch else {}
    rest |= {"time": round(time, 3), "id": request.id, "sample": request.sample}
    if asked is not None:
        rest |= {**asked, "messages": [message.as_dict() for message in request.messages]}
    return _line(key, "batched" if batch else "sent", attempt, 0.0, held, rest)


def reply_line(reply: Reply, attempt: int, maybe: float) -> bytes:
    rest: dict[str, Any] = {
        "model": reply.model,
        "id": reply.id,
        "sample": reply.sample,
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": None if reply.usage is None else reply.usage.as_dict(),
        "created": round(reply.created, 3),
        "request_id": reply.request_id,
    }
    optional: dict[str, Any] = {
        "reasoning": reply.reasoning,
        "refusal": reply.refusal,
        "cost_estimated": reply.cost_estimated or None,
        "logprobs": dict(reply.logprobs) or None,
    }
    rest |= {name: value for name, value in optional.items() if value is not None}
    return _line(reply.key, "reply", attempt, reply.cost_usd, maybe, rest)


def failed_line(
    event: str,
    key: str,
    request: ApiRequest,
    attempt: int,
    usd: float,
    maybe: float,
    reason: str,
    message: str,
    time: float,
) -> bytes:
    """event: failed, lost or givenup."""
    rest = {
        "reason": reason,
        "message": message,
        "time": round(time, 3),
        "id": request.id,
        "sample": request.sample,
    }
    return _line(key, event, attempt, usd, maybe, rest)


def read_reply(row: Mapping[str, Any]) -> Reply:
    """Back from `reply_line`, as known."""
    return Reply(
        key=row["key"],
        id=row["id"],
        sample=row["sample"],
        text=row["text"],
        model=row["model"],
        finish_reason=row["finish_reason"],
        usage=None if row["usage"] is None else Usage.from_dict(row["usage"]),
        cost_usd=row["usd"],
        created=row["created"],
        request_id=row["request_id"],
        reasoning=row.get("reasoning"),
        refusal=row.get("refusal"),
        cost_estimated=bool(row.get("cost_estimated")),
        logprobs=row.get("logprobs", {}),
        known=True,
    )


def read_given_up(row: Mapping[str, Any]) -> GivenUp:
    """Back from `failed_line`, as known."""
    return GivenUp(row["key"], row["id"], row["sample"], row["reason"], row["message"], known=True)


def read_request(row: Mapping[str, Any]) -> ApiRequest:
    """Back from the first `sent_line` of a key."""
    sampling = row.get("sampling", {})
    return ApiRequest(
        row["id"],
        tuple(Message(message["role"], message["content"]) for message in row["messages"]),
        row["sample"],
        sampling.get("max_tokens"),
        sampling.get("top_logprobs"),
    )
