"""Whether an endpoint heeds the shape that a reply is asked in: some accept it and ignore it."""

import json
from typing import Any

from stages.core.records import Message
from stages.llm import ledger, wire
from stages.llm.settings import Form

QUESTION = (Message(role="user", content="Which city is the capital of France? Answer in JSON."),)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["capital_city_name", "answered_by_schema"],
    "properties": {
        "capital_city_name": {"type": "string"},
        "answered_by_schema": {"type": "string", "enum": ["yes"]},
    },
}
"""Nothing in the question leads to these names: who writes them has read the schema."""

REPLY_TOKENS = 20

PLAINER: dict[Form, Form] = {
    "json_schema": "json_object",
    "json_value": "text",  # TGI's json_object is the same thing by another name
    "json_object": "text",
}


def key(target: wire.Target) -> str:
    """Names what a probe finds out, and of whom."""
    asked = {"api": target.api, "model": target.model, "form": target.form}
    return ledger.key({**target.origin, **asked})


def request(target: wire.Target) -> dict[str, Any]:
    return wire.request(target, QUESTION, SCHEMA)


def is_heeded(form: Form, entry: ledger.Entry) -> bool:
    """Whether the reply has the shape that it was asked in.

    A reply that was cut off says nothing against it.
    """
    if entry.finish_reason == "length":
        return True
    try:
        said = json.loads(entry.text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(said, dict):
        return False
    return form == "json_object" or said.keys() == set(SCHEMA["required"])


def is_asked(body: dict[str, Any]) -> bool:
    """Whether the body of a request is a probe's."""
    messages: object = body.get("messages")
    return messages == [message.model_dump() for message in QUESTION]
