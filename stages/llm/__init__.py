"""Any model behind chat completions: messages in, a reply out, asked once and kept for ever."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import openai

from stages.core import store
from stages.core.records import Message
from stages.llm import batches, budget, connection, ledger, outline
from stages.llm.budget import Forecast, Prices, Terms
from stages.llm.connection import Server
from stages.llm.ledger import Imported
from stages.llm.orders import Orders
from stages.llm.retries import Retries
from stages.llm.settings import (
    PATHS,
    Batch,
    Config,
    OpenAI,
    Outline,
    api_key,
    longest_reply,
    public,
)
from stages.llm.teacher import RefusedError, Reply, Settings, Teacher, Usage
from stages.llm.wire import Target

__all__ = [
    "Batch",
    "Config",
    "Forecast",
    "Imported",
    "OpenAI",
    "Outline",
    "RefusedError",
    "Reply",
    "Teacher",
    "Usage",
    "api_key",
    "export_ledger",
    "forecast",
    "import_ledger",
    "open",
    "public",
]


@contextlib.contextmanager
def open(cfg: Config, section: str = "teacher") -> Iterator["Teacher"]:
    """The configured model with its ledger; PipelineError where its key is not set.

    `section` is where in params.yaml its settings stand, for errors to name.
    """
    match cfg:
        case Outline():
            settings = Settings(
                server=Server(
                    openai.OpenAI(
                        base_url="http://outline.invalid/v1",
                        api_key="none",
                        http_client=httpx2.Client(transport=outline.Transport()),
                        max_retries=0,
                    ),
                    PATHS["chat"],
                    60,
                ),
                target=_target(cfg),
                terms=_terms(cfg),
                retries=Retries(1, 0, 0, None),
                address="outline",
                section=section,
                concurrency=2,
            )
        case OpenAI():
            settings = Settings(
                server=Server(
                    connection.client(cfg, api_key(cfg, section)),
                    PATHS[cfg.api],
                    cfg.timeout_s,
                ),
                target=_target(cfg),
                terms=_terms(cfg),
                retries=Retries(
                    cfg.max_attempts, cfg.backoff_s, cfg.retry_after_cap_s, cfg.deadline_s
                ),
                address=public(cfg.base_url),
                section=section,
                concurrency=cfg.concurrency,
                requests_per_minute=cfg.requests_per_minute,
                tokens_per_minute=cfg.tokens_per_minute,
                max_cost_usd=cfg.max_cost_usd,
                batches=batches.Settings(cfg.batch_route, cfg.batch_requests, cfg.batch_poll_s)
                if isinstance(cfg, Batch)
                else None,
            )
    with _ledger() as calls, contextlib.closing(Orders(calls.path)) as orders:
        teacher = Teacher(settings, calls, orders)
        try:
            yield teacher
        finally:
            settings.server.client.close()


def forecast(
    cfg: Config, requests: Iterable[tuple[Sequence[Message], dict[str, Any] | None]]
) -> Forecast:
    """What asking for all these messages and schemas would take; nothing is sent, no key needed.

    Replies are taken to be as long as earlier ones of this model, and prompts to be tokenized as
    theirs were; without any in the ledger, as the settings guess and as cl100k counts.
    """
    with _ledger() as calls:
        return budget.forecast(requests, _target(cfg), calls, _terms(cfg))


def export_ledger(path: Path) -> int:
    """Write every call of the ledger as a line of JSON; how many there are."""
    with _ledger() as calls:
        return calls.export(path)


def import_ledger(path: Path) -> Imported:
    """Take over the calls of an exported ledger, all of them or, with a PipelineError, none."""
    with _ledger() as calls:
        return calls.import_(path)


@contextlib.contextmanager
def _ledger() -> Iterator[ledger.Ledger]:
    calls = ledger.Ledger(store.cache("ledger.db"))
    try:
        yield calls
    finally:
        calls.close()


def _target(cfg: Config) -> Target:
    if isinstance(cfg, Outline):
        origin = {"endpoint": "outline", "version": outline.version()}
        return Target(origin, {"model": "outline"}, "chat", "json_schema")
    chosen = {"temperature": cfg.temperature, "max_tokens": cfg.max_tokens}
    sampling = {
        "model": cfg.model,
        **{name: value for name, value in chosen.items() if value is not None},
        **cfg.extra_body,
    }
    return Target({"endpoint": public(cfg.base_url)}, sampling, cfg.api, cfg.response_format)


def _terms(cfg: Config) -> Terms:
    if isinstance(cfg, Outline):
        return Terms(Prices(0, 0), guess=1, longest=None, needs_probe=False)
    return Terms(
        Prices(cfg.prompt_price_usd_per_mtok, cfg.completion_price_usd_per_mtok),
        cfg.completion_tokens_guess,
        longest_reply(cfg.max_tokens, cfg.extra_body),
        needs_probe=cfg.response_format != "text",
        share=cfg.batch_price_share if isinstance(cfg, Batch) else 1.0,
    )
