"""A request: as the ledger knows it, as it is sent, and its reply read back."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rs_bpe import bpe

from stages.core.records import Message
from stages.llm.ledger import Entry
from stages.llm.settings import Form

MESSAGE_TOKENS = 4
"""What a chat template puts around a message, as OpenAI counts it; a little more for the reply."""
TEMPLATE_TOKENS = 256
"""Above what any template in use adds of its own, such as a default system prompt or a date."""


MOST_TOKENS = 1 << 40
"""Of which a usage may speak: a higher count is a fault of the server, and no column holds any."""


class NotAReplyError(Exception):
    """The endpoint answered 200 with something that is no completion."""


@dataclass(frozen=True)
class Target:
    """Who is asked, and how: all of a request but its messages and its schema."""

    origin: dict[str, str]
    """What, beside the request body, decides the reply."""
    sampling: dict[str, Any]
    """The request body beside the messages: the model, the temperature, …"""
    api: str
    form: Form

    @property
    def model(self) -> str:
        return str(self.sampling["model"])


@dataclass(frozen=True)
class Said:
    """A reply; its tokens are counted here where the endpoint does not say them."""

    entry: Entry
    is_billed: bool
    """Whether the tokens are those that the endpoint says."""


def request(
    target: Target, messages: Sequence[Message], schema: dict[str, Any] | None
) -> dict[str, Any]:
    """What the reply hangs on. The shape is asked for as configured, whatever the probe found:
    who imports a ledger need not probe to find its replies."""
    body: dict[str, Any] = {
        **target.sampling,
        "messages": [message.model_dump() for message in messages],
        **shape(target.form, schema),
    }
    api = {} if target.api == "chat" else {"api": target.api}
    return {**target.origin, **api, "schema": schema, "body": body}


def body(target: Target, request: dict[str, Any], form: Form) -> dict[str, Any]:
    """What is posted: the request's body in the form that the endpoint heeds."""
    sent = {name: value for name, value in request["body"].items() if name != "response_format"}
    if "response_format" in target.sampling:  # the user's own
        sent["response_format"] = target.sampling["response_format"]
    sent |= shape(form, request["schema"])
    if target.api == "completions":
        sent["prompt"] = plain(sent.pop("messages"))
    return sent


def shape(form: Form, schema: dict[str, Any] | None) -> dict[str, Any]:
    """The field of the body that asks for JSON of the schema; none for text."""
    if schema is None:
        return {}
    match form:
        case "json_schema":
            named = {"name": "reply", "strict": True, "schema": schema}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case "json_value":
            return {"response_format": {"type": "json", "value": schema}}
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case "text":
            return {}


def plain(messages: Sequence[dict[str, str]]) -> str:
    """The messages as one text for a model without a chat template.

    System texts as they stand, then `User:` and `Assistant:` before each turn, an empty line
    between them, and `Assistant:` at the end, from where the model goes on.
    """
    parts = [
        message["content"]
        if message["role"] == "system"
        else f"{message['role'].capitalize()}: {message['content']}"
        for message in messages
    ]
    return "\n\n".join([*parts, "Assistant:"])


def read(content: bytes, request: dict[str, Any]) -> Said:
    """The reply; NotAReplyError where the body is none."""
    try:
        reply = json.loads(content)
        choice = reply["choices"][0]
        text = choice["text"].lstrip() if "text" in choice else choice["message"].get("content")
        usage = reply.get("usage") or {}
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(text or "", str) or not isinstance(reply, dict):
            raise TypeError
        finish_reason = str(choice.get("finish_reason") or "stop")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        head = " ".join(content[:800].decode(errors="replace").split())[:200]
        raise NotAReplyError(f"no chat completion: {head}") from None
    text = _storable(text or "")
    finish_reason = _storable(finish_reason)
    if (tokens := _count_of(prompt)) is not None and (written := _count_of(completion)) is not None:
        return Said(Entry(text, finish_reason, tokens, written), is_billed=True)
    entry = Entry(text, finish_reason, prompt_tokens(request), count(text))
    return Said(entry, is_billed=False)


def _count_of(said: object) -> int | None:
    """What a usage says, if that can be a number of tokens."""
    return said if type(said) is int and 0 <= said <= MOST_TOKENS else None


def _storable(text: str) -> str:
    """The text with half a surrogate pair, which JSON may escape and UTF-8 cannot write, as `?`."""
    return text.encode(errors="replace").decode()


# --- tokens ------------------------------------------------------------------------------------


def prompt_tokens(request: dict[str, Any]) -> int:
    """Tokens of a request's messages as cl100k counts them, with a chat template's own."""
    messages = request["body"]["messages"]
    return MESSAGE_TOKENS * (len(messages) + 1) + sum(count(m["content"]) for m in messages)


def most_prompt_tokens(sent: dict[str, Any]) -> int:
    """An upper bound of the tokens that any tokenizer makes of a body: none is below a byte."""
    return len(json.dumps(sent, ensure_ascii=False).encode()) + TEMPLATE_TOKENS


def count(text: str) -> int:
    """Tokens of the text as cl100k counts them: offline, and near what other models count."""
    return _counter()(text)


@functools.cache
def _counter() -> Callable[[str], int]:
    number_of: Callable[[str], int] = bpe.openai.cl100k_base().count
    return number_of
