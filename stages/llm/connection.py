"""The connection to an endpoint: a body is posted, and the answer comes whole, in time, or not."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import httpx2
import openai


class Address(Protocol):
    """Settings of an endpoint."""

    @property
    def base_url(self) -> str: ...
    @property
    def api_version(self) -> str | None: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def timeout_s(self) -> float: ...


@dataclass(frozen=True)
class Server:
    """Where requests go."""

    client: openai.OpenAI
    path: str
    timeout_s: float

    def post(self, body: dict[str, Any], timeout_s: float) -> bytes:
        """The body of the answer; openai.APIError where there is none."""
        # The typed methods look at every message again, for twice the processor time.
        return self.client.post(
            self.path,
            cast_to=httpx2.Response,
            body=body,
            options={"timeout": min(timeout_s, self.timeout_s)},
        ).content


def client(cfg: Address, secret: str) -> openai.OpenAI:
    """The SDK's client of the address; its retries are off."""
    limits = httpx2.Limits(
        max_connections=cfg.concurrency, max_keepalive_connections=cfg.concurrency
    )
    common: dict[str, Any] = {
        "base_url": cfg.base_url,
        "api_key": secret,
        "timeout": cfg.timeout_s,
        "max_retries": 0,  # the SDK gives a 429 two tries in a second; the one retry layer is ours
        "http_client": openai.DefaultHttpxClient(
            limits=limits, event_hooks={"request": [begin], "response": [bound]}
        ),
    }
    if cfg.api_version is not None:
        return openai.AzureOpenAI(api_version=cfg.api_version, **common)
    return openai.OpenAI(**common)


def begin(request: httpx2.Request) -> None:
    request.extensions["ends"] = time.monotonic() + request.extensions["timeout"]["read"]


def bound(response: httpx2.Response) -> None:
    """End a body that comes in drops: the client's own timeout begins anew with each."""
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = Bounded(response.stream, response.request)


@dataclass
class Bounded(httpx2.SyncByteStream):
    stream: httpx2.SyncByteStream
    request: httpx2.Request

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.stream:
            if time.monotonic() > self.request.extensions["ends"]:
                raise httpx2.ReadTimeout("the reply took too long", request=self.request)
            yield chunk

    def close(self) -> None:
        self.stream.close()
