"""The dataset card: what it says is what the data holds, and hostile text stays text."""

import random
import re
from html.parser import HTMLParser
from typing import Any

import huggingface_hub
import pytest
import yaml
from hypothesis import example as also
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from stages.core.records import (
    Assignment,
    Document,
    Evidence,
    Example,
    Message,
    Reject,
    identify,
)
from stages.synthesize import card

TEACHER = card.Teacher("openai", "gpt-4.1-mini", "https://api.openai.com/v1")


def page(name: str, text: str = "Text.", title: str = "", source: str = "manual") -> Document:
    url = f"https://site.test/docs/{name}.html"
    return Document(id=identify(url), url=url, title=title or name, text=text, source=source)


def example(number: int, **changes: Any) -> Example:
    row = Example(
        id=identify(number),
        kind="factual",
        track=None,
        messages=(Message(role="user", content="What?"), Message(role="assistant", content="It.")),
        question="What?",
        answer="It.",
        chunk_ids=("c",),
        evidence=(Evidence(document_id="d", start=0, end=3, text="It."),),
        call_id="call",
    )
    return row.model_copy(update=changes)


def make(**changes: Any) -> str:
    parts: dict[str, Any] = {
        "name": "manual",
        "documents": [page("a"), page("b")],
        "assignment": [
            Assignment(document_id="a", cluster_id="1", partition="train"),
            Assignment(document_id="b", cluster_id="1", partition="train"),
            Assignment(document_id="c", cluster_id="2", partition="test"),
        ],
        "examples": {
            "train": [example(0), example(1), example(2, kind="howto")],
            "validation": [example(3)],
            "test": [example(4, track="held_out"), example(5, track="same_fact", kind="code")],
        },
        "rejects": [Reject(id=str(n), reason="no facts" if n else "too short") for n in range(3)],
        "teacher": TEACHER,
        "prompts": {"facts": "0123abcd", "answer": "4567ef01"},
        "leakage": "No test question is asked in training.",
        "zeros": {"style": "no author is named"},
    }
    return card.card(**parts | changes)


def front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(parts(text)[1])
    return found


def body(text: str) -> str:
    return parts(text)[2]


def parts(text: str) -> list[str]:
    """Cut where the hub cuts: at lines that are three dashes, not at dashes within a line."""
    return re.split(r"(?m)^---\n", text, maxsplit=2)


def section(text: str, name: str) -> str:
    return text.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]


def table(text: str, name: str) -> dict[str, list[str]]:
    """The rows of a section's table by their first cell."""
    lines = [line for line in section(text, name).splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    return {row[0]: row[1:] for row in rows}


class Page(HTMLParser):
    """The tags and the text of a rendered card."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        self.feed(parser.render(markdown))
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


# --- what it says ------------------------------------------------------------------------------


def test_the_front_matter_is_what_the_hub_reads() -> None:
    assert front(make()) == {
        "pretty_name": "manual",
        "license": "unknown",
        "task_categories": ["question-answering", "text-generation"],
        "size_categories": ["n<1K"],
        "tags": ["docent", "synthetic"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": name, "path": f"{name}.jsonl"}
                    for name in ("train", "validation", "test")
                ],
            }
        ],
    }


def test_the_hubs_own_library_reads_the_card() -> None:
    name = "a: b # ‘c’\n--- \U0001f600"
    read = huggingface_hub.DatasetCard(make(name=name))
    assert read.data.pretty_name == name
    assert read.data.license == "unknown"
    assert read.text == body(make(name=name))


def test_an_empty_partition_is_no_split_for_the_hub() -> None:
    found = front(make(examples={"train": [example(0)], "validation": [], "test": []}))
    assert [row["split"] for row in found["configs"][0]["data_files"]] == ["train"]
    assert "configs" not in front(make(examples={}))


def test_counts_stand_by_kind_partition_and_track() -> None:
    rows = table(make(), "Examples")
    assert rows["kind"] == [
        *("train", "validation", "same\\_fact", "held\\_out"),
        "gold",
        "why none",
    ]
    assert rows["factual"] == ["2", "1", "0", "1", "0", ""]
    assert rows["code"] == ["0", "0", "1", "0", "0", ""]
    assert rows["style"] == ["0", "0", "0", "0", "0", "no author is named"]
    assert rows["all"] == ["3", "1", "1", "1", "0", ""]


def test_partitions_rejects_sources_and_teacher_are_told() -> None:
    text = make()
    assert table(text, "Partitions")["train"] == ["2", "1"]
    assert table(text, "Partitions")["test"] == ["1", "1"]
    assert list(table(text, "Left out").items())[2:] == [("no facts", ["2"]), ("too short", ["1"])]
    assert "https\\://site.test/docs/](https://site.test/docs/) | 2 |" in section(text, "Sources")
    assert table(text, "Teacher")["model"] == ["gpt-4.1-mini"]
    assert table(text, "Teacher")["prompt facts"] == ["0123abcd"]
    assert "No test question is asked in training." in section(text, "Leakage")


def test_two_training_rows_of_two_kinds_are_shown_and_no_test_row() -> None:
    shown = section(make(), "Two rows")
    assert re.findall(r'"kind": "(\w+)"', shown) in (["factual", "howto"], ["howto", "factual"])
    assert shown.count('"id"') == 2
    assert example(4).id not in make() and example(5).id not in make()


def test_a_card_of_nothing_is_a_card() -> None:
    text = make(documents=[], assignment=[], examples={}, rejects=[], prompts={}, zeros={})
    assert "Nothing was left out." in text and "There is no training row." in text
    assert "None found." in section(text, "Licences as found")


def test_equal_data_in_another_order_gives_equal_bytes() -> None:
    documents = [page(name, f"© 2020 {name[0]}\n\nMIT License") for name in "abcdefg"]
    rejects = [Reject(id=str(n), reason=f"reason {n % 3}") for n in range(9)]
    rows = [example(n) for n in range(9)]
    first = make(documents=documents, rejects=rejects, examples={"train": rows})
    for seed in range(5):
        for part in (documents, rejects, rows):
            random.Random(seed).shuffle(part)
        assert make(documents=documents, rejects=rejects, examples={"train": rows}) == first


def test_a_secret_in_an_address_is_left_out() -> None:
    address = "https://user:sk-secret@api.test:8080/v1?api_key=sk-secret#sk-secret"
    documents = [page("a", "MIT License").model_copy(update={"url": address})]
    text = make(teacher=card.Teacher("openai", "m", address), documents=documents)
    assert "sk-secret" not in text and "user" not in table(text, "Teacher")["endpoint"][0]
    assert table(text, "Teacher")["endpoint"] == ["https\\://api.test:8080/v1"]


def test_the_path_of_a_local_document_is_not_told() -> None:
    local = page("a", "MIT License", "My page").model_copy(update={"url": "file:///home/me/a.md"})
    assert "/home" not in make(documents=[local])
    assert "several" in section(make(documents=[local]), "Sources")


# --- licences ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "spdx"),
    [
        ("SPDX-License-Identifier: Apache-2.0 OR MIT", "Apache-2.0 OR MIT"),
        ("Licensed under the Apache License, Version 2.0 (the “License”).", "Apache-2.0"),
        ("This work is licensed under a Creative Commons Attribution 4.0 licence.", "CC-BY-4.0"),
        (
            "Creative Commons Attribution-ShareAlike 4.0 International License",
            "CC-BY-SA-4.0",
        ),
        ("Text: CC BY-NC-SA 3.0", "CC-BY-NC-SA-3.0"),
        ("Creative Commons Attribution-NonCommercial-NoDerivatives 4.0", "CC-BY-NC-ND-4.0"),
        ("Dual: MIT License or Apache-2.0", None),
        ("The software is released under the MIT license.", "MIT"),
        ("Distributed under the 3-Clause BSD license", "BSD-3-Clause"),
        ("GNU General Public License, version 3", "GPL-3.0"),
        ("GNU Lesser General Public License v3", "LGPL-3.0"),
        ("It is dedicated to the public domain under CC0.", "CC0-1.0"),
        ("Python Software Foundation License Version 2", "PSF-2.0"),
        ("© 2001–2026 The Authors", None),
        ("Copyright 2020 Example GmbH. All rights reserved.", None),
        ("(c) 2020 Example", None),
        ("Published under the terms of the House licence.", None),
    ],
)
def test_a_statement_of_rights_is_found_with_its_page_and_name(line: str, spdx: str | None) -> None:
    document = page("legal", f"# Legal\n\nSome words.\n\n{line}\n\nMore.", "Legal notes")
    (found,) = card.licences([document])
    assert found == card.Licence(line, spdx, (("Legal notes", document.url),))
    text = make(documents=[document, page("other")])
    assert "[Legal notes](https://site.test/docs/legal.html)" in section(text, "Licences as found")
    assert line in Page(body(text)).text
    assert front(text)["license"] == "other"


@pytest.mark.parametrize(
    "line",
    [
        "The MIT campus is in Cambridge.",
        "A driving licence is needed.",
        "License keys are set in the file.",
        "Copy right to left.",
        "The option (c) starts in a new window.",
        "Use the cc command by default.",
    ],
)
def test_a_line_that_states_no_rights_is_no_licence(line: str) -> None:
    assert card.licences([page("a", line)]) == []
    assert "None found" in section(make(documents=[page("a", line)]), "Licences as found")


def test_one_statement_on_many_pages_is_told_once_with_their_number() -> None:
    documents = [page(f"p{n}", "© 2020 Example") for n in range(9)]
    (line,) = re.findall(r"(?m)^- .*$", body(make(documents=documents)))
    assert line.count("](") == card.MOST_PAGES and line.endswith(" and 6 more")


def test_a_long_line_is_told_from_its_statement_on() -> None:
    long = "word " * 100 + "is licensed under the MIT License" + " and more" * 100
    (found,) = card.licences([page("a", long)])
    assert "licensed under the MIT License" in found.statement
    assert found.spdx == "MIT" and len(found.statement) <= card.LONGEST_STATEMENT + 2


def test_so_many_statements_that_the_list_ends_are_counted() -> None:
    documents = [page(f"p{n}", f"© 20{n:02} Example") for n in range(30)]
    assert "10 further statements are not listed." in make(documents=documents)


# --- hostile text ------------------------------------------------------------------------------

PIECES = st.sampled_from(
    ["<script>alert(1)</script>", "[x](javascript:alert(1))", "![x](http://e.test/p.png)", "|",
     "\n\n# Title", "\n---\n", "`", "```", "**", "~~", "_", "\\", "&lt;", "<!--", "-->", "1. ",
     "- ", "> ", "#", "https://evil.test", "www.evil.test", "me@evil.test", "$x$", "=", "\u202e",
     "](http://evil.test)", "\x00", "\u2028", "http://[", "<http://evil.test>", "|---|"]
)  # fmt: skip
HOSTILE = st.lists(PIECES | st.text(max_size=5), min_size=1, max_size=6).map("".join)


@settings(deadline=None)
@given(HOSTILE)
def test_hostile_text_is_shown_letter_for_letter(text: str) -> None:
    for markdown in (f"{card.plain(text, None)}", f"- {card.plain(text, None)}"):
        shown = Page(markdown)
        assert set(shown.tags) <= {"p", "ul", "li"}
        wanted = " ".join(card.HIDDEN.sub("", " ".join(text.split())).split())
        assert shown.text.strip("\n") == wanted
    cells = Page(f"| a | b |\n| --- | --- |\n| {card.plain(text, None)} | last |\n")
    assert cells.tags.count("td") == 2 and not cells.links


@settings(deadline=None, max_examples=40)
@also(["x", "x", "x", "x", "x", "\n---\n", "x", "x"])
@given(st.lists(HOSTILE, min_size=8, max_size=8))
def test_no_text_of_the_data_changes_the_shape_of_the_card(texts: list[str]) -> None:
    title, statement, reason, model, leakage, name, answer, url = texts
    harmless = shape(*["x"] * 8)
    assert shape(title, statement, reason, model, leakage, name, answer, url) == harmless


def shape(*texts: str) -> tuple[list[str], list[str]]:
    """The tags of a card that is made of these texts, and where its links go."""
    title, statement, reason, model, leakage, name, answer, url = texts
    line = " ".join(statement.split())[:60]
    # The order of the rows is that of the sources' names, whatever comes after their first letter.
    linked = page("a", f"© 2020 {line}", title or "t", source=f"z{name}")
    unlinked = page("b", "MIT License", title or "t", "other").model_copy(update={"url": f"x{url}"})
    text = make(
        name=name,
        documents=[linked, unlinked],
        rejects=[Reject(id="r", reason=reason)],
        teacher=card.Teacher("openai", model, "https://api.test/v1"),
        prompts={name: reason},
        leakage=leakage,
        examples={"train": [example(0, answer=answer)]},
        zeros={"style": title},
    )
    assert front(text)["pretty_name"] == name
    found = Page(body(text))
    hosts = sorted({re.sub(r"(https://[^/]+).*", r"\1", link) for link in found.links})
    return found.tags, [host for host in hosts if host != "https://site.test"]


def test_an_unescaped_title_would_change_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect that the two tests above are for."""
    evil = "x ](http://evil.test) <script>alert(1)</script> | more"
    harmless = shape(*["x"] * 8)
    assert shape(evil, *["x"] * 7) == harmless
    monkeypatch.setattr(card, "plain", lambda text, longest=None: text)
    assert shape(evil, *["x"] * 7) != harmless
