"""What a rebuild asks again: an edited page's own calls, and what becomes of malformed replies."""

import hashlib
import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import billing
import pytest
from chat import config
from test_synthesize import ROOT, SHARES, workspace
from test_synthesize import Site as Inputs
from test_synthesize_kinds import sort_of

from stages import llm, split
from stages.core import config as configuration
from stages.core import store
from stages.core.model import Config as Model
from stages.core.records import Chunk, Document, Example, Heading, identify
from stages.llm import probe

assert workspace  # the fixture, which every test here uses

SOME_OF_ALL = SHARES | {
    "multihop": 0.1,
    "unanswerable": 0.5,
    "style": 0.1,
    "raft": 0.1,
    "raft_absent": 0.2,
    "preferences": 1.0,
}
"""As conf/synthesize has them, and some of the author's own words."""
LIMITS = {"max_facts": 240, "num_validation": 60, "num_same_fact": 100, "num_held_out": 60}
"""As conf/synthesize has them."""
FORMS = (
    "What {x}?",
    "Tell me what {x}.",
    "Could you explain what {x}?",
    "I would like to know what {x}.",
    "Do you know what {x}?",
    "In one sentence, what {x}?",
    "Please look up what {x}.",
)


# --- a site of prose that says something else on each page ---------------------------------------


def word(number: int) -> str:
    """Another one for each number."""
    syllables = [c + v for c in "bdfghjklmnprstvwz" for v in "aeiou"]
    return (word(number // 85) if number >= 85 else "") + syllables[number % 85]


def name(number: int) -> str:
    return word(85**2 + number).capitalize()


def page(number: int, num_sections: int, num_pages: int, extra: str = "") -> Document:
    """A page of sections, each about a chunk long."""
    chance = random.Random(number)
    me = name(number)

    def some() -> str:
        return word(chance.randrange(85, 85 * 60))

    parts = [f"# The {me}\n"]
    for _ in range(num_sections):
        parts.append(f"## How the {me} meets the {some()} of {some()}\n")
        for _ in range(4):  # sentences
            verb = chance.choice(["holds", "moves", "keeps", "sorts", "measures"])
            things = f"the {some()} {some()} with {chance.randrange(2, 999)} {some()}"
            parts.append(f"The {me} {verb} {things} of {some()} and {some()}.{extra}\n")
            extra = ""
        if chance.random() < 0.3:
            other = (number + chance.randrange(1, num_pages)) % num_pages
            parts.append(f"It goes on in [another page](http://site.test/{name(other)}).\n")
    url = f"http://site.test/{me}"
    text = "\n".join(parts)
    headings = []
    for match in re.finditer(r"(?m)^(#+) (.+)$", text):
        start, title = len(text[: match.start()].encode()), match[2]
        headings.append(Heading(start=start, level=len(match[1]), title=title, anchor=f"a{start}"))
    return Document(
        id=identify(url),
        url=url,
        title=f"The {me}",
        text=text,
        source="test",
        headings=tuple(headings),
    )


class Site(Inputs):
    """Of such pages, split as a run splits them."""

    def __init__(self, folder: Path, num_pages: int, num_sections: int) -> None:
        self.sizes = (num_sections, num_pages)
        super().__init__(folder, [page(number, *self.sizes) for number in range(num_pages)])
        self.split()

    def split(self) -> None:
        documents = self.folder / "documents.jsonl"
        store.write(documents, self.documents)
        params = configuration.read(ROOT / "params.yaml")
        cfg = configuration.load(params, "split", split.Config)
        model = configuration.load(params, "model", Model)
        split.run(cfg, model, documents, self.folder / "split")
        store.write(self.folder / "chunks.jsonl", self.chunks)

    def edit(self, number: int, extra: str) -> None:
        self.documents[number] = page(number, *self.sizes, extra)
        self.split()

    @property
    def chunks(self) -> list[Chunk]:
        return list(store.read(self.folder / "split" / "training.jsonl", Chunk))

    def all_examples(self) -> list[Example]:
        return [e for part in ("train", "validation", "test") for e in self.examples(part)]


# --- a teacher of these pages --------------------------------------------------------------------


def sentences(text: str) -> list[str]:
    return re.findall(r"(?m)^The [A-Z].+?\.", text)


def written(sentence: str) -> dict[str, Any]:
    """A right fact, which no other sentence gives."""
    subject, verb, rest = sentence.removesuffix(".").split(" ", 3)[1:]
    asked = f"the {subject} does, that it {verb} {' '.join(rest.split()[:3])}"
    return {
        "kind": "factual",
        "history": [],
        "forms": [form.format(x=asked) for form in FORMS],
        "answer": sentence,
        "evidence": sentence,
    }


def wrong(sentence: str) -> str:
    """With another number."""
    return re.sub(r"\d+", lambda found: str(int(found[0]) + 1000), sentence)


def chosen(text: str, of: int) -> int:
    """A number below, which the text decides."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % of


def say(body: dict[str, Any]) -> str:
    """Facts of the first two sentences; one in ten is wrong, and put right when asked."""
    text = body["messages"][-1]["content"]
    said = sentences(text)
    if not all(map(sentences, text.split("\n\n---\n\n"))) and sort_of(body) != "answerable":
        return '{"facts": []}'
    match sort_of(body):
        case "facts":
            rows = [written(sentence) for sentence in said[:2]]
            for row in rows:
                if chosen(row["answer"], 10) == 0:
                    row["answer"] = wrong(row["answer"])
            return json.dumps({"facts": rows})
        case "repair":
            return json.dumps({"answer": sentences(text.partition("Evidence:")[2])[0]})
        case "multihop":
            spans = [sentences(chunk)[0] for chunk in text.split("\n\n---\n\n")]
            row = written(spans[0]) | {"evidence": spans, "answer": " ".join(spans)}
            names = " and the ".join(span.split()[1] for span in spans)
            row["forms"] = [form.format(x=f"the {names} do together") for form in FORMS]
            return json.dumps({"facts": [{k: row[k] for k in ("forms", "answer", "evidence")}]})
        case "unanswerable":
            asked = f"the {said[0].split()[1]} costs beside the {said[0].split()[4]}"
            return json.dumps({"facts": [{"forms": [form.format(x=asked) for form in FORMS]}]})
        case "answerable":
            return json.dumps({"answered": False})
        case _:
            row = {"question": f"What would you say of {said[0].split()[1]}?", "evidence": said[0]}
            return json.dumps({"facts": [row]})


def subject_of(body: dict[str, Any]) -> str:
    """The name of the page that a call is about: of several the first."""
    text = body["messages"][-1]["content"]
    found = re.search(r"(?m)^Page: The (\w+)$", text) or re.search(
        r"(?m)^Question: .*?\bthe (\w+)", text
    )
    assert found
    return found[1]


def slot(body: dict[str, Any]) -> str:
    """What a call asks, whatever passages of other pages it is shown."""
    text = body["messages"][-1]["content"]
    asked = re.search(r"(?m)^Question: .*", text)
    return sort_of(body) + (asked[0] if asked else text.partition("\n\n---\n\n")[0])


# --- one edited page ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Rebuilt:
    """What a site's builds asked for."""

    chunks: int
    first: int
    """Calls of the first build."""
    again: int
    """Of a second build of the same."""
    took: "Took"
    """That second build."""
    all_facts: "Took"
    """Another one that trains all facts, and not as many as conf/synthesize says."""
    edits: tuple["Edit", ...]


@dataclass(frozen=True)
class Took:
    seconds: float
    processor_s: float


@dataclass(frozen=True)
class Edit:
    """The calls of a build after one page was edited, by what they are about."""

    own: int
    """The page alone."""
    shared: int
    """Another page, with text of this one in the prompt, now or before the edit."""
    others: tuple[str, ...]
    """Other pages alone: the kinds of these calls."""
    repeated: int
    """Calls that were billed before."""


def rebuilt(folder: Path, num_pages: int, num_edits: int, num_sections: int) -> Rebuilt:
    site = Site(folder / "site", num_pages, num_sections)
    num_chunks = len(site.chunks)
    with billing.serving(say=say) as server:

        def run(**limits: int) -> list[dict[str, Any]]:
            """The calls that it took."""
            before = len(server.bodies)
            site.run(teacher, shares=SOME_OF_ALL, **limits)
            return server.bodies[before:]

        def again(**limits: int) -> Took:
            began, used = time.perf_counter(), time.process_time()
            calls.extend(run(**limits))
            return Took(time.perf_counter() - began, time.process_time() - used)

        teacher = config(server.address, concurrency=8, max_tokens=4000)
        built = [body for body in run(**LIMITS) if not probe.is_asked(body)]
        before, first = {slot(body): body for body in built}, len(server.bill)
        calls: list[dict[str, Any]] = []
        took = again(**LIMITS), again()
        repeated = len(calls)
        edits = []
        for edit in range(num_edits):
            number = edit * num_pages // num_edits
            site.edit(number, f" It was mended {edit + 2} times.")
            calls, me = run(**LIMITS), name(number)
            own = [body for body in calls if subject_of(body) == me]
            shared = [
                body
                for body in calls
                if body not in own and f"The {me} " in json.dumps([body, before.get(slot(body))])
            ]
            others = [sort_of(b) for b in calls if b not in own and b not in shared]
            before |= {slot(body): body for body in calls}
            counts = (len(own), len(shared), tuple(others), server.duplicates)
            edits.append(Edit(*counts))
    return Rebuilt(num_chunks, first, repeated, *took, tuple(edits))


@pytest.mark.parametrize(
    ("num_pages", "num_edits", "num_sections"),
    [(24, 2, 2), pytest.param(500, 5, 6, marks=pytest.mark.slow)],
)
def test_an_edited_page_asks_for_its_own_calls_and_a_rerun_for_none(
    tmp_path: Path, num_pages: int, num_edits: int, num_sections: int
) -> None:
    found = rebuilt(tmp_path, num_pages, num_edits, num_sections)
    assert found.first > 2 * num_pages
    assert found.again == 0
    for edit in found.edits:
        assert edit.own > 0
        assert (edit.others, edit.repeated) == ((), 0)


# --- malformed replies ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What the teacher says of a chunk, and how many facts it may be held to."""

    text: str
    num_rows: int | None
    """None where the reply is spoilt at random: it may have any number, or be unreadable."""


def spoilt(rows: list[dict[str, Any]], chance: random.Random) -> Reply:
    """The facts of a chunk as a model that is not at its best writes them."""
    row = rows[0]
    text = json.dumps({"facts": rows})
    at = chance.randrange(len(text))
    whole = chance.choice(
        [
            *(text, f"Here you are:\n```json\n{text}\n```\nAnything else?", json.dumps(rows)),
            json.dumps({"facts": rows, "note": "more than was asked"}),
        ]
    )
    bad_rows: list[Any] = [
        *(None, "a fact", 7, [], {}, [row]),
        *(row | {"kind": kind} for kind in ("poem", None, "multihop", "dialogue")),
        *(row | {"forms": forms} for forms in ([], ["one"], "one", [" "] * 7, [1] * 7, None)),
        *(row | {"answer": answer} for answer in ("", 5, None, ["x"], "word " * 61, "\ud800")),
        *(row | {"evidence": spans} for spans in ("", "Stands nowhere.", [], 1, "\ud800", "\0")),
        *(row | {"history": turns} for turns in (None, "x", [{}], [{"question": "?"}])),
        row | {"forms": [form + "\udfff" for form in row["forms"]]},
        {name: value for name, value in row.items() if name != chance.choice(list(row))},
        row | {"answer": wrong(row["answer"])},
        row | {"answer": "It is not so. " + row["answer"].replace("The", "No")},
    ]
    several = [*rows, *chance.sample(bad_rows, 3)]
    chance.shuffle(several)
    none = [
        *("", "I cannot help with that.", "null", "true", "7", '"facts"', "{}", "[", "{" * 5000),
        *('{"facts": null}', '{"facts": "none"}', '{"facts": {}}', '{"items": []}', text[:at]),
        *("[" * 100_000, '{"facts": ' + "[" * 100_000, '{"facts": [' + "9" * 5000 + "]}"),
        text.replace('"forms"', "forms"),
    ]
    all_wrong = [row | {"answer": wrong(row["answer"])} for row in rows]
    flipped = text[:at] + chr(chance.randrange(1, 0x2FFF)) + text[at + 1 :]
    return chance.choice(
        [
            Reply(whole, len(rows)),
            Reply(json.dumps({"facts": [chance.choice(bad_rows)]}), 1),
            Reply(json.dumps({"facts": several}), len(several)),
            Reply(json.dumps({"facts": all_wrong}), len(rows)),
            Reply(chance.choice(none), None),
            Reply(flipped, None),
            Reply(text + " The end." * 9 + "CUT", None),
            Reply('{"facts": []}', 0),
        ]
    )


@dataclass(frozen=True)
class Reconciled:
    """What became of the replies about chunks."""

    replies: int
    unread: int
    """Quarantined whole."""
    empty: int
    """That say of the chunk that it has no fact, which is noted too."""
    facts: int
    """In the others."""
    accepted: int
    repaired: int
    quarantined: int
    strays: tuple[str, ...]
    """Calls whose facts are not each accepted, repaired or quarantined, once."""


UNREAD = {"reply cut off", "reply is not JSON facts", "refused by the teacher"}


def reconciled(folder: Path, num_pages: int, num_sections: int) -> Reconciled:
    site = Site(folder / "site", num_pages, num_sections)
    said: dict[str, Reply] = {}

    def say_badly(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        if sort_of(body) == "repair":
            right = json.loads(say(body))["answer"]
            return json.dumps({"answer": right if chosen(text, 2) else wrong(right)})
        rows = [written(sentence) for sentence in sentences(text)[:3]]
        reply = spoilt(rows, random.Random(text)) if rows else Reply('{"facts": []}', 0)
        said[text] = reply
        return reply.text

    limits = {"validation_share": 0.0, "test_share": 0.0, "max_leak_rate": 1.0}
    with billing.serving(
        say=say_badly, finish=lambda text: "length" if text.endswith("CUT") else "stop"
    ) as server:
        teacher = config(server.address, concurrency=8, max_tokens=None)
        site.run(teacher, max_reject_rate=1.0, **limits)
        assert server.duplicates == 0
    return reconcile(site, said)


def reconcile(site: Site, said: dict[str, Reply]) -> Reconciled:
    """Each reply with what the stage wrote of it, joined by chunk, call and place."""
    llm.export_ledger(site.folder / "paid.jsonl")
    calls = [json.loads(line) for line in (site.folder / "paid.jsonl").read_text().splitlines()]
    chunks = {chunk.text: chunk.id for chunk in site.chunks}
    reasons: dict[str, list[str]] = {}
    for reject in site.rejects():
        reasons.setdefault(reject.id, []).append(reject.reason)
    answers: dict[str, set[str]] = {}
    for example in site.all_examples():
        answers.setdefault(example.call_id, set()).add(example.answer)
    counts: Counter[str] = Counter()
    strays = []
    for call in calls:
        text = call["request"]["body"]["messages"][-1]["content"]
        if text not in said:
            continue  # a repair
        chunk, reply = chunks[text.partition("\n\n")[2]], said[text]
        of_chunk = reasons.get(chunk, [])
        unread, empty = sum(reason in UNREAD for reason in of_chunk), of_chunk.count("no facts")
        places = range(reply.num_rows if reply.num_rows is not None else 40)
        ids = [identify(chunk, call["key"][:16], place) for place in places]
        bad = sum(len(reasons.get(id, [])) for id in ids)
        good = answers.get(call["key"][:16], set())
        repaired = sum(f'"answer": {json.dumps(answer)}' not in reply.text for answer in good)
        counts.update(replies=1, unread=unread, empty=empty, facts=bad + len(good))
        counts.update(accepted=len(good) - repaired, repaired=repaired, quarantined=bad)
        is_whole = unread + empty == (not bad and not good)
        if not is_whole or reply.num_rows not in (None, bad + len(good)):
            strays.append(f"{chunk}: {of_chunk}, {bad} and {len(good)}: {reply.text[:90]}")
    assert counts["replies"] == len(said)
    return Reconciled(**counts, strays=tuple(strays))


@pytest.mark.parametrize(
    ("num_pages", "num_sections"), [(30, 3), pytest.param(900, 12, marks=pytest.mark.slow)]
)
def test_every_malformed_reply_is_accepted_repaired_or_quarantined(
    tmp_path: Path, num_pages: int, num_sections: int
) -> None:
    found = reconciled(tmp_path, num_pages, num_sections)
    assert found.strays == ()
    assert found.facts == found.accepted + found.repaired + found.quarantined
    assert min(found.unread, found.accepted, found.repaired, found.quarantined) > 0
    assert num_pages < 900 or found.replies >= 5000
