"""An API that writes replies: where it is, how it is asked, at what speed and for how much money."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from gad.config.base import Section

_SECRET = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)

_OWN_KEYS = {
    "model",
    "messages",
    "input",
    "stream",
    "n",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "reasoning_effort",
} | {
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
}


def _plain_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{url!r} is no address of an API: it begins with http:// or https://, e.g. http://127.0.0.1:8080/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"the address of the API at {parts.hostname} holds more than host and path: take out user, password and "
            "query; a key comes from the environment variable that api_key_env names"
        )
    return url.rstrip("/")


ApiUrl = Annotated[str, AfterValidator(_plain_url)]


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("is the name of an environment variable, e.g. OPENAI_API_KEY, not the key itself")
    return name


EnvironmentVariable = Annotated[str, AfterValidator(_variable)]


class OpenAIEndpoint(Section):
    """Any OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp, Ollama, OpenRouter, Gemini, Anthropic, ..."""

    kind: Literal["openai"] = "openai"
    base_url: str = "https://api.openai.com/v1"
    """Up to the version, e.g. http://127.0.0.1:8080/v1 for a server of your own."""
    api_key_env: EnvironmentVariable | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; null where the endpoint needs none."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Further headers. No secrets: they are written into the run folder."""
    max_tokens_parameter: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    """`auto`: `max_completion_tokens` at OpenAI, whose newer models refuse the other, `max_tokens` elsewhere."""

    @field_validator("base_url")
    @classmethod
    def _base_url(cls, url: str) -> str:
        return _plain_url(url)

    @field_validator("headers")
    @classmethod
    def _no_secrets(cls, headers: dict[str, str]) -> dict[str, str]:
        for name in headers:
            if _SECRET.search(name):
                raise ValueError(f"header {name!r} looks like a secret: name an environment variable in api_key_env")
        return headers


class AzureEndpoint(Section):
    """Azure OpenAI with deployments and an `api-version`. For Azure's newer /openai/v1/ take `base_url`."""

    kind: Literal["azure"] = "azure"
    azure_endpoint: str
    """https://RESOURCE.openai.azure.com"""
    api_version: str
    """As Azure's documentation gives it, e.g. 2024-10-21."""
    api_key_env: EnvironmentVariable = "AZURE_OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_completion_tokens"
    """Older models take `max_tokens`."""

    @field_validator("azure_endpoint")
    @classmethod
    def _azure_endpoint(cls, url: str) -> str:
        return _plain_url(url)


def _kind_of_endpoint(value: Any) -> str:
    if isinstance(value, AzureEndpoint):
        return "azure"
    keys: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    return str(keys.get("kind", "azure" if "azure_endpoint" in keys else "openai"))


Endpoint = Annotated[
    Annotated[OpenAIEndpoint, Tag("openai")] | Annotated[AzureEndpoint, Tag("azure")], Discriminator(_kind_of_endpoint)
]


class ReplySampling(Section):
    """How replies are drawn. All of it is part of a reply's identity: another value buys new replies."""

    max_tokens: PositiveInt = 1536
    """A reply is cut here; reasoning counts. 1,536 is the paper's limit for replies."""
    temperature: NonNegativeFloat | None = None
    """null leaves the provider's default, which reasoning models insist on."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """null leaves the provider's default."""
    seed: NonNegativeInt | None = None
    """Sample i of a prompt is asked with seed + i. Providers do not promise equal replies for equal seeds."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a reply."""
    reasoning_effort: str | None = None
    """For reasoning models, as the provider names it: minimal, low, medium, high, ..."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further keys of the request's body, as the provider defines them."""

    @field_validator("extra")
    @classmethod
    def _own_keys_stay(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in extra:
            if name in _OWN_KEYS:
                raise ValueError(f"extra.{name}: this key is gad's own; set it by its own name, or leave it out")
        return extra


class ApiLimits(Section):
    """How fast and how patiently. None of it changes the replies."""

    requests_per_minute: PositiveInt | None = None
    """null takes it from the provider's rate-limit headers, and feels its way where there are none."""
    tokens_per_minute: PositiveInt | None = None
    """As `requests_per_minute`; prompt and reply together."""
    concurrency: PositiveInt = 64
    """Requests under way at once, at most. 64 replies of 5 seconds are 770 a minute."""
    timeout_seconds: PositiveFloat = 600.0
    """Of one request, from sending to the last byte. 600 is the `openai` package's."""
    max_attempts: PositiveInt = 8
    """Of a request that fails on the way; with doubling pauses 8 attempts last about a minute and a half."""
    max_rate_limited: PositiveInt = 30
    """Times that a request may be told to come back later (429) before it is given up."""
    first_pause_seconds: PositiveFloat = 0.5
    """Before the second attempt; doubled each time, at random between half and the whole of it."""
    longest_pause_seconds: PositiveFloat = 60.0
    """No pause is longer, but for a longer Retry-After."""
    longest_retry_after_seconds: PositiveFloat = 300.0
    """A Retry-After above this is cut to it."""
    max_reply_bytes: PositiveInt = 16 * 2**20
    """A longer response is dropped as it comes in; 128,000 tokens are less than 1 MiB."""


class Prices(Section):
    """USD per million tokens."""

    usd_per_million_input: NonNegativeFloat
    """Of prompt tokens."""
    usd_per_million_output: NonNegativeFloat
    """Of reply tokens, reasoning among them."""
    usd_per_million_cached_input: NonNegativeFloat | None = None
    """Of prompt tokens that the provider read from its cache; null: as the others."""
    batch_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """The Batch API's price over the ordinary one; 0.5 at OpenAI, Azure, Anthropic, Gemini and Mistral."""


class ApiConfig(Section):
    """What every buyer of replies needs: the teacher's collector, a judge."""

    endpoint: Endpoint = OpenAIEndpoint()
    """Where it is."""
    model: Annotated[str, Field(min_length=1)]
    """As the endpoint names it."""
    api: Literal["chat", "responses"] = "chat"
    """Chat completions, which all endpoints have, or OpenAI's Responses API."""
    sampling: ReplySampling = ReplySampling()
    """How replies are drawn."""
    limits: ApiLimits = ApiLimits()
    """How fast and how patiently it is asked."""
    prices: Prices | None = None
    """null takes the package's dated table where it knows the model; a local server's replies then cost nothing."""
    max_cost_usd: PositiveFloat | None = None
    """Never passed, with everything counted that may have been paid: requests under way, lost connections."""

    @model_validator(mode="after")
    def _responses_have_no_seed(self) -> ApiConfig:
        if self.api == "responses" and (self.sampling.seed is not None or self.sampling.stop):
            raise ValueError("the Responses API takes neither `seed` nor `stop`: leave them out, or set api: chat")
        return self


class NearDuplicates(Section):
    """Leave out a reply that, with its prompt, nearly repeats an earlier row."""

    threshold: Annotated[float, Field(ge=0.3, le=1.0)] = 0.9
    """Jaccard similarity of character n-grams from which a row counts as a repetition."""
    ngram: Annotated[int, Field(ge=2, le=20)] = 5
    """Characters of an n-gram; as in the search for leaks."""


class BatchSettings(Section):
    """The Batch API: replies within a day, at a lower price."""

    requests_per_batch: Annotated[int, Field(ge=1, le=50_000)] = 10_000
    """OpenAI takes 50,000 and 200 MB at most; smaller batches come back sooner and queue fewer tokens."""
    megabytes_per_batch: Annotated[float, Field(gt=0.0, le=200.0)] = 100.0
    """A batch is closed before its file grows longer."""
    batches_at_once: PositiveInt = 4
    """Batches that wait at the provider at a time; its limit on queued tokens is another bound."""
    poll_seconds: PositiveFloat = 60.0
    """Between two looks at a batch."""
    completion_window: str = "24h"
    """The only one that OpenAI offers."""


class TeacherConfig(ApiConfig):
    """A teacher to ask for the replies to the prompts of `data`. Replies that `data.filters` or a key below leaves out
    stay in the ledger, each with its reason."""

    system_prompt: str | None = None
    """Put before prompts that have none of their own. The student does not see it: it learns to do without."""
    replies_per_prompt: PositiveInt = 1
    """Each is a request of its own, so that each is paid for once; the paper has one."""
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = ()
    """ISO 639-1 codes, e.g. en: replies in other languages are left out. Needs `pip install py3langid`."""
    near_duplicates: NearDuplicates | None = None
    """Off: replies that repeat carry the teacher's own probabilities."""
    accept_models: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Names (with * and ?) under which the provider may return the teacher; replies of other models are left out.

    Without any: `model` itself and its dated snapshots (gpt-4o-2024-08-06 for gpt-4o). Where no reply bears such a
    name, the endpoint has names of its own (a deployment, a file), and every name is taken. The summary counts them.
    """
    batch: BatchSettings = BatchSettings()
    """For `gad collect --batch`."""
