"""The review in a spreadsheet: what goes out is safe, what comes back is merged or one line."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import Evidence, Example, Message, Partition, identify
from stages.synthesize import review
from stages.synthesize.examples import Review

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
ON_DISK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


def example(
    number: int, question: str = "", answer: str = "", evidence: str = "", **changes: Any
) -> Example:
    question = question or f"What is {number}?"
    answer = answer or f"It is the number {number}."
    span = Evidence(document_id=f"d{number}", start=0, end=1, text=evidence or answer)
    row = Example(
        id=identify(number),
        kind="factual",
        track=None,
        messages=(
            Message(role="user", content=question),
            Message(role="assistant", content=answer),
        ),
        question=question,
        answer=answer,
        chunk_ids=("c",),
        evidence=(span,),
        call_id="call",
    )
    return row.model_copy(update=changes)


EXAMPLES: dict[Partition, list[Example]] = {
    "train": [example(0), example(1)],
    "validation": [example(2)],
    "test": [example(3)],
}
IDS = [row.id for part in EXAMPLES.values() for row in part]


def cells(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))


class Desk:
    """A spreadsheet and a review.jsonl on the disk."""

    def __init__(self, folder: Path) -> None:
        self.sheet = folder / "review.csv"
        self.review = folder / "review.jsonl"
        self.review.unlink(missing_ok=True)

    def export(self, examples: dict[Partition, list[Example]] = EXAMPLES) -> None:
        reviews = list(store.read(self.review, Review)) if self.review.exists() else []
        review.export(examples, self.sheet, reviews)

    def decide(
        self,
        *decisions: tuple[str, str],
        delimiter: str = ",",
        encoding: str = "utf-8-sig",
        line_end: str = "\r\n",
        change: Callable[[list[list[str]]], object] = lambda rows: None,
        quoting: Any = csv.QUOTE_MINIMAL,
    ) -> None:
        """Fill in decisions from the first row on, and save as a spreadsheet does."""
        rows = cells(self.sheet)
        for row, given_ in zip(rows[1:], decisions, strict=False):
            row[7:9] = given_
        change(rows)
        text = io.StringIO(newline="")
        table = csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
        table.writerows(rows)
        self.sheet.write_bytes(text.getvalue().encode(encoding))

    def import_(self) -> review.Imported:
        return review.import_(self.sheet, self.review, IDS)

    def decisions(self) -> list[tuple[str, str, str | None]]:
        rows = store.read(self.review, Review)
        return [(row.example_id, row.decision, row.answer) for row in rows]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# --- out ---------------------------------------------------------------------------------------


def test_the_export_has_a_row_for_each_example_and_says_that_it_is_utf8(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    urls = {"d0": "https://site.test/a", "d9": "https://site.test/b"}
    assert review.export(EXAMPLES, path, (), urls) == 4
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    header, first, *_, last = cells(path)
    assert ",".join(header) == (
        "id,partition,kind,question,answer,evidence,url,decision,new answer"
    )
    assert review.restore(first[0]) == IDS[0]
    assert first[1:7] == [
        *("train", "factual", "What is 0?", "It is the number 0.", "It is the number 0."),
        "https://site.test/a",
    ]
    assert last[1] == "test" and last[6:] == ["", "", ""]


def test_a_dialogue_is_shown_with_its_earlier_turns(tmp_path: Path) -> None:
    turns = ("system", "[1] x"), ("user", "What?"), ("assistant", "That."), ("user", "And now?")
    messages = tuple(
        Message.model_validate({"role": role, "content": content})
        for role, content in (*turns, ("assistant", "This."))
    )
    dialogue = example(1, "And now?", "This.", messages=messages)
    review.export({"train": [dialogue]}, tmp_path / "a.csv")
    assert cells(tmp_path / "a.csv")[1][3] == "user: What?\nassistant: That.\nuser: And now?"


HOSTILE = st.text(max_size=30) | st.builds(
    "".join, st.lists(st.sampled_from([*FORMULAS, "'", " ", "\n", "cmd|' /C calc'!A0", "1e9"]))
)


@given(HOSTILE)
def test_a_cell_is_never_a_formula_and_comes_back_as_it_was(text: str) -> None:
    cell = review.guard(text)
    assert not cell.startswith(FORMULAS)
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))
    assert review.restore(cell) == text


@pytest.mark.parametrize(
    "text", ["12345678901234567", "12e4567890123456", "1/2", "3", "2026-01-02"]
)
def test_what_a_spreadsheet_takes_for_a_number_or_date_is_kept_as_text(text: str) -> None:
    assert review.guard(text) == f"'{text}"
    assert review.restore(f"'{text}") == text


@pytest.mark.parametrize("text", ["It's 5.", "'tis", "The = sign", "", "x" * 99])
def test_a_harmless_cell_is_left_alone(text: str) -> None:
    assert review.guard(text) == text == review.restore(text)


@ON_DISK
@given(texts=st.lists(HOSTILE, min_size=3, max_size=3))
def test_every_exported_cell_is_safe_and_every_row_whole(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "review.csv"
    rows = [example(0, *(text or "x" for text in texts)), example(1)]
    review.export({"train": rows}, path)
    found = cells(path)
    assert [review.restore(row[0]) for row in found[1:]] == [row.id for row in rows]
    for row in found:
        assert len(row) == 9
        for cell in row:
            assert not cell.startswith(FORMULAS)
            assert not set(cell) & {"\r", "\0"}


def test_an_unguarded_export_would_run_formulas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted defect that the test above is for."""
    monkeypatch.setattr(review, "guard", lambda text: text)
    review.export({"train": [example(0, "=1+1")]}, tmp_path / "a.csv")
    assert cells(tmp_path / "a.csv")[1][3].startswith(FORMULAS)


def test_no_cell_is_longer_than_excel_reads(tmp_path: Path) -> None:
    review.export({"train": [example(0, evidence="word " * 20_000)]}, tmp_path / "a.csv")
    (cell,) = (row[5] for row in cells(tmp_path / "a.csv")[1:])
    assert 30_000 < len(cell) < 32_767 and cell.endswith(" […]")


# --- in ----------------------------------------------------------------------------------------


def test_decisions_are_merged_and_undecided_rows_left_out(desk: Desk) -> None:
    desk.export()
    desk.decide(("accept", ""), ("Edit ", " Better.\nMuch. "), ("", ""), ("REJECT", ""))
    done = desk.import_()
    assert desk.decisions() == [
        (IDS[0], "accept", None),
        (IDS[1], "edit", "Better.\nMuch."),
        (IDS[3], "reject", None),
    ]
    assert done == review.Imported(1, 1, 1, 1, num_changed=3)


def test_a_second_import_changes_no_byte_and_so_does_an_export_between(desk: Desk) -> None:
    desk.export()
    desk.decide(("accept", ""), ("edit", "=1+1"), ("edit", "7"), ("reject", ""))
    assert desk.import_().num_changed == 4
    before = desk.review.read_bytes()
    assert desk.import_().num_changed == 0
    desk.export()
    desk.decide(change=lambda rows: rows[1:].sort(key=lambda row: row[0]))
    assert desk.import_().num_changed == 0
    assert desk.review.read_bytes() == before


def test_a_later_decision_replaces_the_earlier_one_in_its_place(desk: Desk) -> None:
    gone = Review(example_id="gone", decision="reject")
    first, second = IDS[1], IDS[0]
    store.write(
        desk.review,
        [
            Review(example_id=first, decision="accept"),
            gone,
            Review(example_id=second, decision="reject"),
            Review(example_id=first, decision="reject"),
        ],
    )
    desk.export()
    desk.decide(("edit", "Right."), change=lambda rows: rows.append([*rows[2][:7], "accept", ""]))
    assert desk.import_().num_changed == 2
    assert desk.decisions() == [
        (first, "accept", None),
        ("gone", "reject", None),
        (second, "edit", "Right."),
    ]


def test_a_blank_sheet_changes_nothing_and_makes_no_file(desk: Desk) -> None:
    desk.export()
    assert desk.import_() == review.Imported(0, 0, 0, 4, num_changed=0)
    assert not desk.review.exists()


ANSWERS = st.text(min_size=1, max_size=20) | HOSTILE
GIVEN = st.lists(
    st.sampled_from([("", ""), ("accept", ""), ("reject", "")])
    | ANSWERS.filter(lambda text: bool(review._plain(text))).map(lambda text: ("edit", text)),
    min_size=4,
    max_size=4,
)


@ON_DISK
@given(
    st.lists(GIVEN, min_size=1, max_size=3),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_every_answer_arrives_whatever_the_spreadsheet_writes(
    tmp_path: Path, rounds: list[Any], delimiter: str, line_end: str, encoding: str
) -> None:
    desk = Desk(tmp_path)
    wanted: dict[str, tuple[str, str | None]] = {}
    for decisions in rounds:
        desk.export()
        rows = [(word, review.guard(text)) for word, text in decisions]
        desk.decide(
            *rows,
            delimiter=delimiter,
            line_end=line_end,
            encoding=encoding,
            quoting=csv.QUOTE_ALL,  # Python leaves a lone \r bare otherwise, as no spreadsheet does
        )
        desk.import_()
        for id, (word, text) in zip(IDS, decisions, strict=True):
            if word:
                wanted[id] = (word, review._plain(text) or None)
    found = desk.decisions() if desk.review.exists() else []
    assert {id: (word, answer) for id, word, answer in found} == wanted
    assert len(found) == len(wanted)
    before = desk.review.read_bytes() if found else b""
    desk.export()
    assert desk.import_().num_changed == 0
    assert (desk.review.read_bytes() if found else b"") == before


def test_a_long_answer_is_kept_whole_and_an_export_does_not_cut_it(desk: Desk) -> None:
    long = "word " * 10_000 + "end"
    desk.export()
    desk.decide(("edit", long))
    desk.import_()
    desk.export()
    assert len(cells(desk.sheet)[1][8]) < 32_767
    assert desk.import_().num_changed == 0
    assert desk.decisions() == [(IDS[0], "edit", long)]


def test_the_file_is_what_the_stage_reads(desk: Desk) -> None:
    desk.export()
    desk.decide(("reject", ""))
    desk.import_()
    (line,) = desk.review.read_text().splitlines()
    assert json.loads(line) == {"example_id": IDS[0], "decision": "reject", "answer": None}


def test_columns_may_move_and_others_may_be_added(desk: Desk) -> None:
    def rearrange(rows: list[list[str]]) -> None:
        for place, row in enumerate(rows):
            row[:] = ["note" if place == 0 else "seen by me", *reversed(row), "", ""]

    desk.export()
    desk.decide(("edit", "Right."), change=rearrange)
    desk.import_()
    assert desk.decisions() == [(IDS[0], "edit", "Right.")]


def test_an_unknown_id_without_a_decision_is_no_mistake(desk: Desk) -> None:
    desk.export({"train": [example(77), example(0)]})
    desk.decide(("", ""), ("accept", ""))
    desk.import_()
    assert desk.decisions() == [(IDS[0], "accept", None)]


# --- mistakes ----------------------------------------------------------------------------------


def rename(rows: list[list[str]]) -> None:
    rows[0][7] = "decison"


def twice(rows: list[list[str]]) -> None:
    rows[0][2] = "decision"


def again(rows: list[list[str]]) -> None:
    rows[0].append("Decision")


def strange(rows: list[list[str]]) -> None:
    rows[2][0] = "0000000000000000"


def wide(rows: list[list[str]]) -> None:
    rows[3] += ["and", "more"]


@pytest.mark.parametrize(
    ("decisions", "options", "said"),
    [
        (
            [("acept", "")],
            {},
            r":2: decision: 'acept' \(did you mean accept\?\): expected accept, ",
        ),
        ([("accept", ""), ("edit", " ")], {}, ":3: new answer: blank, with the decision edit"),
        ([("accept", "New.")], {}, ":2: new answer: 'New.' with the decision accept: decide edit"),
        ([("", "New.")], {}, ":2: decision: blank, with a new answer beside it: write edit"),
        ([("edit", "a\nb"), ("x", "")], {}, ":4: decision: 'x'"),
        ([("", ""), ("reject", "")], {"change": strange}, ":3: id: '0000000000000000': no such ex"),
        ([], {"change": rename}, ":1: no column 'decision' among id, .*, decison, new answer: exp"),
        ([], {"change": twice}, ":1: no column 'kind'|two columns are named 'decision'"),
        ([], {"change": again}, ":1: two columns are named 'decision': remove one"),
        ([], {"change": wide}, ":4: 11 cells: expected 9 as in line 1"),
        ([("edit", "für")], {"encoding": "cp1252"}, ":2: not UTF-8: save it as “CSV UTF-8”"),
        ([("edit", "für")], {"encoding": "utf-16"}, ":1: not UTF-8: save it as “CSV UTF-8”"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    desk: Desk, decisions: list[Any], options: Any, said: str
) -> None:
    store.write(desk.review, [Review(example_id=IDS[2], decision="accept")])
    before = desk.review.read_bytes()
    desk.export()
    desk.decide(*decisions, **options)
    with pytest.raises(PipelineError, match=said) as raised:
        desk.import_()
    assert "\n" not in str(raised.value) and "review.csv:" in str(raised.value)
    assert desk.review.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ":1: no column 'id' among : expected the columns id, partition"),
        (b"\x00\x01", ":1: no column 'id'"),
        (b'id,"partition', ":1: no row of CSV: unexpected end of data"),
    ],
)
def test_a_file_that_is_no_export_is_one_line(desk: Desk, content: bytes, said: str) -> None:
    desk.sheet.write_bytes(content)
    with pytest.raises(PipelineError, match=said):
        desk.import_()


def test_a_missing_sheet_is_one_line(desk: Desk) -> None:
    with pytest.raises(PipelineError, match=r"review\.csv: no such file: export the examples"):
        desk.import_()
