"""How a reply's shape is asked for, what the probe finds out, and the other routes and headers."""

import json
from pathlib import Path
from typing import Any

import billing
import pytest
from chat import config, good, serving, steps

from stages import llm
from stages.core import progress
from stages.core.records import Message
from stages.llm import probe, wire
from stages.llm.ledger import Entry

ASKED = (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("TEST_KEY", "sk-secret-0815")
    return tmp_path


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(progress, "_listeners", [lambda step: said.append(step.note)])
    return said


def ask(server: billing.Server, num_rows: int = 3, **changes: Any) -> llm.Usage:
    with llm.open(config(server.address, **changes)) as teacher:

        def one(row: int) -> llm.Reply:
            message = Message(role="user", content=f"row {row} {changes}")
            return teacher.complete((message,), SCHEMA)

        for _ in teacher.map(one, range(num_rows)):
            pass
        return teacher.usage


def kinds(server: billing.Server) -> list[str]:
    return [body.get("response_format", {"type": "text"})["type"] for body in server.bodies]


def test_a_server_that_heeds_the_schema_is_probed_once(notes: list[str]) -> None:
    with billing.serving() as server:
        usage = ask(server)
        assert (usage.calls, usage.probes) == (3, 1)
        assert usage.cost_usd == pytest.approx(server.usd)
        assert ask(server, 6).probes == 0
        assert kinds(server) == ["json_schema"] * 7
    assert not notes


def test_a_server_that_ignores_the_schema_is_asked_in_plainer_ways_and_it_is_said(
    notes: list[str],
) -> None:
    with billing.serving(heeds=frozenset({"json_object"})) as server:
        usage = ask(server)
        assert (usage.calls, usage.probes) == (3, 2)
        assert kinds(server) == ["json_schema", *["json_object"] * 4]
        assert len(notes) == 1 and "does not heed json_schema" in notes[0]
        assert ask(server, 6).probes == 0  # and each run says it
        assert len(notes) == 2


def test_a_server_that_refuses_each_shape_is_asked_for_text(notes: list[str]) -> None:
    with billing.serving(refuses=frozenset({"json_schema", "json_object"})) as server:
        usage = ask(server)
        assert (usage.calls, usage.probes) == (3, 0)
        assert kinds(server) == ["json_schema", "json_object", *["text"] * 3]
        assert "as text" in notes[0]


def test_tgi_is_sent_its_own_form_of_a_schema() -> None:
    with billing.serving(refuses=frozenset({"json_schema"})) as server:
        assert ask(server, response_format="json_value").probes == 1
        assert server.bodies[-1]["response_format"] == {"type": "json", "value": SCHEMA}


def test_no_probe_is_made_where_nothing_or_only_text_is_asked() -> None:
    with billing.serving() as server:
        assert ask(server, response_format="text").probes == 0
        ask(server)
        (probed,) = [body for body in server.bodies if probe.is_asked(body)]
        assert probed["response_format"]["type"] == "json_schema"
        num_requests = len(server.bodies)
        assert ask(server).cached == 3
        assert len(server.bodies) == num_requests


def test_replies_in_a_plainer_form_are_found_where_nothing_was_probed(tmp_path: Path) -> None:
    with billing.serving(heeds=frozenset()) as server:
        ask(server)
        llm.export_ledger(tmp_path / "paid.jsonl")
        (tmp_path / ".cache" / "ledger.db").unlink()
        llm.import_ledger(tmp_path / "paid.jsonl")
        num_requests = len(server.bodies)
        assert ask(server).cached == 3
        assert len(server.bodies) == num_requests


@pytest.mark.parametrize(
    "text, finish_reason, heeded",
    [
        ('{"capital_city_name": "Paris", "answered_by_schema": "yes"}', "stop", True),
        ('{"capital": "Paris"}', "stop", False),
        ("Paris", "stop", False),
        ('["Paris"]', "stop", False),
        ("[" * 100_000, "stop", False),
        ('{"capital_city', "length", True),  # says nothing against it
    ],
)
def test_only_the_names_of_the_schema_show_that_it_was_read(
    text: str, finish_reason: str, heeded: bool
) -> None:
    assert probe.is_heeded("json_schema", Entry(text, finish_reason, 1, 1)) == heeded


# --- routes and headers ------------------------------------------------------------------------


def test_a_base_model_gets_the_messages_as_one_text() -> None:
    with billing.serving(text=lambda asked: " Because.") as server:
        with llm.open(config(server.address, api="completions")) as teacher:
            reply = teacher.complete(ASKED, None)
        assert server.heads[0][0] == "/v1/completions"
        assert server.bodies[0]["prompt"] == "Be brief.\n\nUser: Why?\n\nAssistant:"
        assert "messages" not in server.bodies[0]
        with llm.open(config(server.address)) as teacher:
            assert not teacher.complete(ASKED, None).cached
    assert (reply.text, reply.completion_tokens) == ("Because.", server.bill[0].completion_tokens)


def test_azure_with_a_dated_version_gets_it_in_the_query_and_the_key_in_its_own_header() -> None:
    with billing.serving() as server:
        base_url = server.address.replace("/v1", "/openai")
        cfg = config(base_url, api_version="2024-10-21", model="my-deployment")
        with llm.open(cfg) as teacher:
            teacher.complete(ASKED, None)
        path, headers = server.heads[0]
    assert path == "/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21"
    assert headers["api-key"] == "sk-secret-0815" and "authorization" not in headers


def test_azure_without_a_version_is_asked_like_openai() -> None:
    with billing.serving() as server:
        cfg = config(server.address.replace("/v1", "/openai/v1"), model="my-deployment")
        with llm.open(cfg) as teacher:
            teacher.complete(ASKED, None)
        path, headers = server.heads[0]
    assert path == "/openai/v1/chat/completions"
    assert headers["authorization"] == "Bearer sk-secret-0815"


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": [1]}}]}',
        b'{"choices": [{"text": 1}]}',
        b'{"choices": {"0": 1}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"usage": [1], "choices": [{"message": {"content": "x"}}]}',
    ],
)
def test_what_is_no_completion_is_named_so(reply: bytes) -> None:
    with pytest.raises(wire.NotAReplyError, match="no chat completion"):
        wire.read(reply, {"body": {"messages": []}})


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": 5}, {"prompt_tokens": "5", "completion_tokens": -1}]
)
def test_usage_that_is_missing_or_no_number_is_counted(usage: Any) -> None:
    reply = {"choices": [{"message": {"content": "Because of the rain."}}], "usage": usage}
    request = {"body": {"messages": [message.model_dump() for message in ASKED]}}
    said = wire.read(json.dumps(reply).encode(), request)
    assert not said.is_billed
    assert said.entry == Entry("Because of the rain.", "stop", 17, 5)


def test_the_servers_own_schema_of_the_user_stays_where_none_is_asked() -> None:
    own = {"response_format": {"type": "json_object"}}
    with serving(steps(good)) as server:
        with llm.open(config(server.address, extra_body=own)) as teacher:
            teacher.complete(ASKED, None)
        assert server.bodies[0]["response_format"] == {"type": "json_object"}
