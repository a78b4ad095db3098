"""The teacher's client, its ledger, and the outline teacher behind the same interface."""

import email.utils
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from chat import Call, config, good, serving, steps
from hypothesis import given
from hypothesis import strategies as st

from stages import llm
from stages.core.errors import PipelineError
from stages.core.records import Message
from stages.llm import outline, retries
from stages.llm.outline import markdown, writing

ASKED = (Message(role="user", content="What is a chunk?"),)
SCHEMA = {"type": "object", "properties": {"facts": {"type": "array"}}}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("TEST_KEY", "sk-secret-0815")
    return tmp_path


# --- the client --------------------------------------------------------------------------------


def test_a_reply_is_stored_and_a_rerun_makes_no_call() -> None:
    with serving(steps(good)) as server:
        with llm.open(config(server.address)) as teacher:
            first = teacher.complete(ASKED, SCHEMA)
            assert teacher.usage.cost_usd == pytest.approx((11 * 1 + 7 * 2) / 1e6)
        with llm.open(config(server.address)) as teacher:
            second = teacher.complete(ASKED, SCHEMA)
            assert (teacher.usage.calls, teacher.usage.cached) == (0, 1)
        assert len(server.bodies) == 1
    assert (first.text, first.prompt_tokens, first.completion_tokens) == ("A span.", 11, 7)
    assert not first.cached and second.cached
    assert first.call_id == second.call_id and len(first.call_id) == 16


def test_the_request_holds_the_messages_the_sampling_and_the_schema() -> None:
    with serving(steps(good)) as server:
        with llm.open(config(server.address, extra_body={"seed": 4})) as teacher:
            teacher.complete(ASKED, SCHEMA)
        body = server.bodies[0]
        assert server.headers[0]["authorization"] == "Bearer sk-secret-0815"
    form = body.pop("response_format")
    assert form["json_schema"] == {"name": "reply", "strict": True, "schema": SCHEMA}
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "What is a chunk?"}],
        "temperature": 0.0,
        "max_tokens": 100,
        "seed": 4,
    }


@pytest.mark.parametrize(
    "changes",
    [{"model": "n"}, {"temperature": 0.5}, {"max_tokens": 9}, {"extra_body": {"seed": 1}}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_decides_a_reply_asks_again(changes: dict[str, Any]) -> None:
    with serving(steps(good)) as server:
        for cfg in (config(server.address), config(server.address, **changes)):
            with llm.open(cfg) as teacher:
                teacher.complete(ASKED, SCHEMA)
        assert len(server.bodies) == 2


def test_other_messages_another_schema_and_another_address_ask_again() -> None:
    with serving(steps(good)) as server, serving(steps(good)) as other:
        with llm.open(config(server.address)) as teacher:
            teacher.complete(ASKED, SCHEMA)
            teacher.complete(ASKED, None)
            teacher.complete((*ASKED, Message(role="assistant", content="?")), SCHEMA)
        with llm.open(config(other.address)) as teacher:
            teacher.complete(ASKED, SCHEMA)
        assert (len(server.bodies), len(other.bodies)) == (3, 1)


def test_speed_and_price_ask_nothing_again() -> None:
    with serving(steps(good)) as server:
        faster = config(
            server.address, concurrency=9, timeout_s=5.0, completion_price_usd_per_mtok=0
        )
        for cfg in (config(server.address), faster):
            with llm.open(cfg) as teacher:
                teacher.complete(ASKED, SCHEMA)
        assert len(server.bodies) == 1


def test_overload_outage_disconnect_and_a_page_in_place_of_json_are_tried_again() -> None:
    answer = steps(
        lambda call: call.fail(429, Retry_After="0"),
        lambda call: call.fail(500),
        Call.disconnect,
        lambda call: call.send(200, b"<html>gateway</html>", Content_Type="text/html"),
        good,
    )
    with serving(answer) as server, llm.open(config(server.address)) as teacher:
        assert teacher.complete(ASKED, SCHEMA).text == "A span."
        assert (len(server.bodies), teacher.usage.calls) == (5, 1)


def test_a_reply_that_does_not_come_is_asked_for_again() -> None:
    free = threading.Event()
    answer = steps(lambda call: (free.wait(20), call.disconnect())[1], good)
    with serving(answer) as server:
        with llm.open(config(server.address, timeout_s=0.3)) as teacher:
            assert teacher.complete(ASKED, SCHEMA).text == "A span."
        assert len(server.bodies) == 2
        free.set()


def test_after_the_last_attempt_one_line_says_what_failed_and_nothing_secret() -> None:
    with serving(steps(lambda call: call.fail(503))) as server:
        cfg = config(server.address, max_attempts=3)
        with llm.open(cfg) as teacher, pytest.raises(PipelineError) as failed:
            teacher.complete(ASKED, SCHEMA)
        assert len(server.bodies) == 3
    line = str(failed.value)
    assert server.address in line and "503" in line and "\n" not in line
    assert "sk-secret" not in line


@pytest.mark.parametrize("status, code", [(401, None), (404, None), (429, "insufficient_quota")])
def test_a_wrong_key_model_or_an_empty_purse_is_not_tried_again(status: int, code: str) -> None:
    with serving(steps(lambda call: call.fail(status, code))) as server:
        with llm.open(config(server.address)) as teacher, pytest.raises(PipelineError):
            teacher.complete(ASKED, SCHEMA)
        assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_for_its_content_is_the_rows_fault(status: int) -> None:
    with serving(steps(lambda call: call.fail(status))) as server:
        with llm.open(config(server.address)) as teacher, pytest.raises(llm.RefusedError):
            teacher.complete(ASKED, SCHEMA)
        assert len(server.bodies) == 1


def test_a_missing_key_is_named_before_any_call() -> None:
    with serving(steps(good)) as server:
        cfg = config(server.address, api_key_env="NO_SUCH_KEY")
        with pytest.raises(PipelineError, match="NO_SUCH_KEY"), llm.open(cfg):
            raise AssertionError("opened without a key")
        assert not server.bodies


def test_no_secret_reaches_the_ledger(workspace: Path) -> None:
    with serving(steps(good)) as server:
        address = server.address.replace("127.0.0.1", "someone:pass-4711@127.0.0.1")
        with llm.open(config(address)) as teacher:
            teacher.complete(ASKED, SCHEMA)
            written = b"".join(p.read_bytes() for p in workspace.rglob("*") if p.is_file())
    assert b"What is a chunk?" in written
    assert b"sk-secret" not in written and b"pass-4711" not in written


def test_a_request_that_several_threads_make_is_sent_once() -> None:
    with serving(steps(good)) as server, llm.open(config(server.address)) as teacher:
        replies = list(teacher.map(lambda _: teacher.complete(ASKED, SCHEMA), range(9)))
        assert len(server.bodies) == 1
    assert sum(not reply.cached for reply in replies) == 1


def test_as_many_calls_as_configured_are_in_flight_and_replies_keep_their_order() -> None:
    together = threading.Barrier(3)
    lock, running, most = threading.Lock(), 0, 0

    def answer(call: Call, number: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(20)  # three must be here at once, or none goes on
        with lock:
            running -= 1
        call.reply(call.server.bodies[number - 1]["messages"][0]["content"])

    def ask(row: int) -> str:
        return teacher.complete((Message(role="user", content=f"row {row}"),), None).text

    with serving(answer) as server, llm.open(config(server.address, concurrency=3)) as teacher:
        replies = list(teacher.map(ask, range(9)))
    assert most == 3
    assert replies == [f"row {row}" for row in range(9)]


def test_the_first_failure_ends_what_waits() -> None:
    def ask(row: int) -> llm.Reply:
        return teacher.complete((Message(role="user", content=f"row {row}"),), None)

    answer = steps(good, lambda call: call.fail(401))
    with serving(answer) as server:
        cfg = config(server.address, concurrency=1)
        with llm.open(cfg) as teacher, pytest.raises(PipelineError, match="401"):
            list(teacher.map(ask, range(50)))
        assert len(server.bodies) == 2


def test_a_failure_wakes_a_call_that_waits_for_minutes() -> None:
    both_sent, waiting = threading.Event(), threading.Event()

    def answer(call: Call, number: int) -> None:
        if call.server.bodies[number - 1]["messages"][0]["content"] == "row 0":
            both_sent.wait(20)  # else the pause would be for both
            call.fail(429, Retry_After="250")
            waiting.set()
        else:
            both_sent.set()
            waiting.wait(20)
            call.fail(401)

    def ask(row: int) -> llm.Reply:
        return teacher.complete((Message(role="user", content=f"row {row}"),), None)

    with serving(answer) as server:
        cfg = config(server.address, concurrency=2)
        with llm.open(cfg) as teacher, pytest.raises(PipelineError, match="401"):
            list(teacher.map(ask, range(2)))
        assert len(server.bodies) == 2


def pause(header: str | None, attempt: int = 1, cap_s: float = 300, backoff_s: float = 1) -> float:
    headers = {} if header is None else {"Retry-After": header}
    response = httpx2.Response(429, headers=headers, request=httpx2.Request("POST", "http://h/"))
    error = openai.RateLimitError("", response=response, body=None)
    return retries.pause(error, attempt, retries.Retries(5, backoff_s, cap_s, None))


def test_retry_after_is_honoured_up_to_the_cap() -> None:
    assert pause("7") == 7
    assert pause("250") == 250  # the SDK alone gives up above 120
    assert pause("3600") == 300
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 90 < pause(date) <= 100
    assert pause("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@given(st.integers(1, 12), st.floats(0, 60), st.floats(0, 400))
def test_without_retry_after_the_pause_is_random_below_a_doubling_ceiling(
    attempt: int, backoff_s: float, cap_s: float
) -> None:
    for header in (None, "soon"):
        waited = pause(header, attempt, cap_s, backoff_s)
        assert 0 <= waited <= min(cap_s, backoff_s * 2 ** (attempt - 1))


# --- the outline teacher -----------------------------------------------------------------------

CHUNK = """## How to start a sweep

A sweep is started with the verb `sweep`. More follows.

To try two rates at once, run:

```bash
python -m stages sweep -m finetune.learning_rate=1e-3,3e-3
```

### What a sweep costs

A sweep takes the time of its [changed stages](http://x/y).

| key | type | default | meaning |
|---|---|---|---|
| `sweep.jobs` | int | `2` | Points that run at *once* \\| at most. |
| `sweep.name` | str | | Name of the sweep. |

| command | what it does |
|---|---|
| `make sweep` | Runs a set of points. |

- **Point**: One combination of values.
- **Note**: This is no term.

The option `--json` prints JSON. It is new.
"""
PAGE = outline.Page("How to sweep", ("How to sweep", "How to start a sweep"), "", CHUNK)


def asked(page: outline.Page) -> dict[str, tuple[str, str]]:
    """The plainest question of each fact, with its kind and answer."""
    return {f.forms[0]: (f.kind, f.answer) for f in outline.write(page) if not f.history}


def test_a_chunk_gives_the_facts_of_its_headings_tables_terms_and_code() -> None:
    assert asked(PAGE) == {
        "How do I start a sweep?": ("howto", "A sweep is started with the verb `sweep`."),
        "Which command do I use to try two rates at once?": (
            "code",
            "Run `python -m stages sweep -m finetune.learning_rate=1e-3,3e-3`.",
        ),
        "What does a sweep cost?": ("factual", "A sweep takes the time of its changed stages."),
        "What does the key `sweep.jobs` mean?": ("factual", "Points that run at once | at most."),
        "What is the default of the key `sweep.jobs` (what a sweep costs)?": (
            "factual",
            "The default of `sweep.jobs` is `2`.",
        ),
        "What does the key `sweep.name` mean?": ("factual", "Name of the sweep."),
        "What does the command `make sweep` do?": ("factual", "Runs a set of points."),
        "What does “point” mean?": ("definition", "One combination of values."),
        "What does the option `--json` do?": ("factual", "The option `--json` prints JSON."),
    }


def test_nested_headings_become_a_dialogue() -> None:
    (dialogue,) = [fact for fact in outline.write(PAGE) if fact.kind == "dialogue"]
    (before,) = dialogue.history
    assert before.forms[0] == "How do I start a sweep?"
    assert dialogue.forms[0] == "And what a sweep costs?"
    assert dialogue.answer == "A sweep takes the time of its changed stages."


@pytest.mark.parametrize(
    "title, question",
    [
        ("How records are joined", "How are records joined?"),
        ("What the seed decides", "What does the seed decide?"),
        ("Why params.yaml is not edited by hand", "Why is params.yaml not edited by hand?"),
        ("What happens when a run is killed", "What happens when a run is killed?"),
        ("Which models can be chosen", "Which models can be chosen?"),
        ("What the bot says when it is lost", "What does the bot say when it is lost?"),
        ("How the four parts work", "Can you say how the four parts work?"),
        ("Is it fast?", "Is it fast?"),
        ("Change the base model", "How do I change the base model?"),
        ("Step 2: look at the pages", "How do I look at the pages?"),
        ("Overview", "What should I know about Overview (Sweeps)?"),
        ("The floors of the code", "What should I know about the floors of the code?"),
    ],
)
def test_a_heading_becomes_a_question_in_plain_english(title: str, question: str) -> None:
    text = f"### {title}\n\nThe stage answers it in full.\n"
    assert list(asked(outline.Page("Sweeps", ("Sweeps",), "", text))) == [question]


@pytest.mark.parametrize(
    "text",
    [
        "### How to stop\n\nIt stops by itself.\n",  # says not what `it` is
        "### How to stop\n\n- one\n- two\n",
        "### How to stop\n\n" + "Words " * 50 + "end.\n",
        "### How to stop\n\nThis sentence was cut in the mid",
        "continued from the chunk before, and it ends here.\n",
        "```python\nprint(1)\n```\n",
        "A line without an end\n\n```bash\nmake all\n```\n",
        "| a | b |\n",
        "",
    ],
)
def test_what_would_be_no_answer_is_left_out(text: str) -> None:
    assert outline.write(outline.Page("Page", ("Page",), "", text)) == []


def test_a_table_of_backslashes_is_asked_about_like_any_other():
    text = "# Escapes\n\n| escape | where it stands |\n|---|---|\n| `\\s` | In a pattern. |\n"
    found = asked(outline.Page("Escapes", ("Escapes",), "", text))
    assert any("\\s" in question for question in found)


def test_rows_of_a_table_that_began_in_the_chunk_before_are_read_by_its_header() -> None:
    page = outline.Page("Keys", ("Keys",), "| key | default |", "| `a.b` | `1` |\n")
    assert asked(page) == {
        "What is the default of the key `a.b`?": ("factual", "The default of `a.b` is `1`.")
    }


def test_a_signature_and_its_text_become_facts() -> None:
    text = "`json.dumps(obj, *, indent=None)`\n\nSerialize obj to a JSON string.\n"
    assert asked(outline.Page("json", ("json",), "", text)) == {
        "What is the signature of `json.dumps`?": ("factual", "`json.dumps(obj, *, indent=None)`"),
        "What does `json.dumps` do?": ("factual", "Serialize obj to a JSON string."),
    }


def test_no_wording_form_fits_a_question_that_another_form_wrote() -> None:
    """Place 0 is never held out; the others are told apart by their words, in every row."""
    written = []
    for row, forms in writing.FORMS.items():
        for place, form in enumerate(forms):
            for x in ("stop the run", "what the key a.b means", "the report. It is new"):
                question = "And where is it?" if row == "question" else "What does it mean?"
                asked = form.format(x=question if row == "question" else x, question=question)
                written.append((row, place, asked))
    for row, forms in writing.FORMS.items():
        for place, form in enumerate(forms[1:], 1):
            fits = re.compile(re.escape(form).replace(re.escape("{x}"), ".+"))
            others = {
                (kind, number) for kind, number, asked in written if fits.fullmatch(asked)
            } - {(row, place)}
            # Rows of one kind share their held places: a like form at the same place is one.
            assert all(number == place for _, number in others), (row, place, others)
    assert {len(forms) for forms in writing.FORMS.values()} == {7}


def test_every_fact_of_the_manual_is_grounded_in_its_page() -> None:
    frame = {"run", "and", "then", "the", "default", "of", "is", "to"}
    checked = 0
    for path in sorted((Path(__file__).parent.parent / "docs").glob("*.md")):
        text = path.read_text()
        title = text.partition("\n")[0].removeprefix("# ")
        for part in re.split(r"(?m)^(?=## )", text):
            page = outline.Page(title, (title,), "", part)
            for fact in outline.write(page):
                assert fact.evidence in part
                stands = " ".join(markdown.plain(fact.evidence).split())
                words = set(re.findall(r"\w+", fact.answer.casefold()))
                said = set(re.findall(r"\w+", f"{stands} {fact.evidence}".casefold()))
                assert fact.answer in stands or words <= said | frame, fact
                assert len(fact.answer.split()) <= 41 and "](" not in fact.answer
                assert len(set(fact.forms)) == 7
                checked += 1
    assert checked > 100


PIECES = st.sampled_from(
    re.split(
        r"\|\|",
        "# A||## How to B||### What C is||Some text.||Some words||"
        "`code` does it.||**T**: U v.||- x||```||"
        "To do it:||1. one||```bash\nmake a\n```||\n||T\n: d e f.||äöü “quoted”.||`f(x)`||"
        "A *b* is a [c](d).||~~~||# ||**||`||| a | b |||||---|---|||| `k` | v |",
    )
)


@given(st.lists(PIECES, max_size=12).map("\n\n".join) | st.lists(PIECES).map("\n".join) | st.text())
def test_any_text_is_read_without_fault_and_evidence_is_copied_from_it(text: str) -> None:
    for fact in outline.write(outline.Page("P", ("P", "Q"), "| k | v |", text)):
        assert fact.evidence and fact.evidence in text
        assert all(turn.evidence in text for turn in fact.history)
        assert all(form.strip() for form in fact.forms) and fact.answer.strip()


@given(st.text(), st.lists(st.text(), max_size=3), st.text(), st.text())
def test_the_layout_of_a_prompt_is_read_back(
    title: str, headings: list[str], header: str, text: str
) -> None:
    def line(words: str) -> str:
        return " ".join(words.split())

    page = outline.Page(line(title), tuple(map(line, headings)), line(header), text)
    assert outline.read(outline.lay_out(page)) == page


def test_the_outline_teacher_answers_as_a_chat_completion_does() -> None:
    client = openai.OpenAI(
        base_url="http://outline.invalid/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx2.Client(transport=outline.Transport()),
    )
    with client:
        completion = client.chat.completions.create(
            model="outline", messages=[{"role": "user", "content": outline.lay_out(PAGE)}]
        )
    content = completion.choices[0].message.content
    assert completion.object == "chat.completion" and content is not None
    assert completion.usage is not None and completion.usage.total_tokens > 0
    assert len(json.loads(content)["facts"]) == len(outline.write(PAGE))


def test_the_outline_teacher_is_asked_through_the_same_client_and_ledger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = (Message(role="user", content=outline.lay_out(PAGE)),)

    def asked() -> llm.Reply:
        with llm.open(llm.Outline(kind="outline")) as teacher:
            return teacher.complete(messages, SCHEMA)

    first, second = asked(), asked()
    assert (first.cached, second.cached) == (False, True) and first.text == second.text
    monkeypatch.setattr(outline, "version", lambda: "a better one")
    assert not asked().cached
