"""The settings of a teacher, and the key that stands in the environment only."""

import os
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from stages.core import config
from stages.core.errors import PipelineError

Form = Literal["json_schema", "json_value", "json_object", "text"]
"""How a reply's shape is asked for; each but the last is a kind of `response_format`."""


PATHS = {"chat": "/chat/completions", "completions": "/completions"}
"""Of an api, below the base address."""


class Outline(config.Base):
    """The embedded teacher without a language model: it reads headings, tables and code."""

    kind: Literal["outline"]


class OpenAI(config.Base):
    """A model behind an OpenAI-compatible address."""

    kind: Literal["openai"]
    base_url: str
    """Address that the path /chat/completions is appended to, such as https://api.openai.com/v1."""
    api: Literal["chat", "completions"]
    """Route: chat (/chat/completions), or completions (/completions) for a base model, which gets
    the messages as one text."""
    api_version: str | None
    """Dated version of an Azure endpoint, such as 2024-10-21, whose address then ends in /openai;
    null for every other endpoint, and for Azure's own address that ends in /openai/v1."""
    model: str
    """Name of the model, as the endpoint knows it."""
    api_key_env: str | None
    """Name of the environment variable that holds the API key, which itself stands nowhere; null
    for an endpoint that wants none."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    """Sampling temperature of the replies; null leaves it to the endpoint."""
    max_tokens: Annotated[int, Field(gt=0)] | None
    """Longest reply, in tokens of the teacher's tokenizer; null leaves it to the endpoint."""
    response_format: Form
    """How the reply's shape is asked for, beside the prompt: json_schema, json_value (TGI's own
    form of it), json_object or text. A server that ignores it is found out by a probe, and asked
    in the next plainer way."""
    extra_body: dict[str, Any]
    """Further fields of the request body, sent as they are, such as {seed: 1}."""
    concurrency: Annotated[int, Field(ge=1, le=256)]
    """Most calls that are in flight at once; fewer for a while after the endpoint answers 429."""
    requests_per_minute: Annotated[int, Field(gt=0)] | None
    """Most requests that are sent in a minute, evenly spread; null for no such limit."""
    tokens_per_minute: Annotated[int, Field(gt=0)] | None
    """Most tokens, of prompts and replies, that are asked for in a minute; null for no limit."""
    timeout_s: Annotated[float, Field(gt=0)]
    """Longest wait for one reply, in seconds."""
    deadline_s: Annotated[float, Field(gt=0)]
    """Longest time of one call with all its attempts and the waits between them, in seconds."""
    max_attempts: Annotated[int, Field(ge=1)]
    """Tries of one call before the stage gives up; what was paid for is kept."""
    backoff_s: Annotated[float, Field(ge=0)]
    """First ceiling of the random wait between two tries, in seconds; it doubles each time."""
    retry_after_cap_s: Annotated[float, Field(ge=0)]
    """Longest wait between two tries, also where the endpoint asks for more, in seconds."""
    prompt_price_usd_per_mtok: Annotated[float, Field(ge=0)]
    """Price of a million prompt tokens, in US dollars."""
    completion_price_usd_per_mtok: Annotated[float, Field(ge=0)]
    """Price of a million completion tokens, in US dollars."""
    completion_tokens_guess: Annotated[int, Field(gt=0)]
    """Length of a reply that a forecast assumes while the ledger holds none of this model, in
    tokens."""
    max_cost_usd: Annotated[float, Field(gt=0)] | None
    """Most US dollars that one run of a stage may pay here, by the prices above; null for no cap.
    What the ledger holds costs nothing."""

    @field_validator("max_cost_usd")
    @classmethod
    def _has_a_worst_case(cls, cap: float | None, info: ValidationInfo) -> float | None:
        if cap is None:
            return cap
        if info.data.keys() >= {"max_tokens", "extra_body"} and not longest_reply(
            info.data["max_tokens"], info.data["extra_body"]
        ):
            raise PydanticCustomError(
                "cap",
                "expected max_tokens beside a cap, without which no call has a highest price: "
                "set max_tokens, or max_cost_usd to null",
            )
        prices = ("prompt_price_usd_per_mtok", "completion_price_usd_per_mtok")
        if info.data.keys() >= set(prices) and not any(info.data[price] for price in prices):
            raise PydanticCustomError(
                "cap",
                "expected prices beside a cap, which both are 0: set prompt_price_usd_per_mtok "
                "and completion_price_usd_per_mtok, or max_cost_usd to null",
            )
        return cap


class Batch(OpenAI):
    """A model whose calls go into batches, each answered within a day and for less, through the
    files and batches routes of an OpenAI-compatible address. What a batch leaves out, and calls
    that hang on replies, go one by one as where kind is openai, at the full price."""

    kind: Literal["openai_batch"]  # type: ignore[assignment]
    batch_route: str
    """Route that a batch and its lines name, such as /v1/chat/completions."""
    batch_price_share: Annotated[float, Field(ge=0, le=1)]
    """Price of a call in a batch, as a share of the prices above."""
    batch_requests: Annotated[int, Field(ge=1, le=50_000)]
    """Most calls of one batch; fewer where the endpoint limits the tokens that wait in batches."""
    batch_poll_s: Annotated[float, Field(gt=0)]
    """Time between two looks at how far the batches are, in seconds."""

    @field_validator("batch_route")
    @classmethod
    def _is_of_the_api(cls, route: str, info: ValidationInfo) -> str:
        path = PATHS.get(info.data.get("api", ""), "")
        if not route.endswith(path) or (route.endswith(PATHS["chat"]) and path != PATHS["chat"]):
            raise PydanticCustomError(
                "route", "expected a route that ends as api says, in {path}", {"path": path}
            )
        return route


Config = Annotated[Outline | OpenAI | Batch, Field(discriminator="kind")]


def longest_reply(max_tokens: int | None, extra_body: dict[str, Any]) -> int | None:
    """Most tokens that one request can have written; None where nothing bounds them."""
    # Reasoning models take max_completion_tokens in place of max_tokens.
    most = extra_body.get("max_completion_tokens", extra_body.get("max_tokens", max_tokens))
    num = max(extra_body.get("n") or 1, extra_body.get("best_of") or 1)
    return None if most is None else int(most) * int(num)


class Keyed(Protocol):
    """Settings of an endpoint that may want a key."""

    @property
    def api_key_env(self) -> str | None: ...


def api_key(cfg: Keyed, section: str = "teacher") -> str:
    """The API key from the environment; PipelineError where it is not set."""
    if cfg.api_key_env is None:
        return "none"  # the SDK wants one
    if found := os.environ.get(cfg.api_key_env, ""):
        return found
    instead = ", or take the embedded teacher with teacher=outline" if section == "teacher" else ""
    raise PipelineError(
        f"{section}.api_key_env: no environment variable {cfg.api_key_env!r} is set: "
        f"export it{instead}"
    )


def public(address: str) -> str:
    """The address without a user, a password or a query, which may be secrets."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
