"""Answers that their evidence supports, and planted errors that it does not."""

from pathlib import Path
from types import MappingProxyType

import planted
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import TITLES, Planted, Table, judge, plant, share
from planted import of_pythons_manual as of_pythons_manual
from planted import sections as sections

from stages.answer.prompt import count
from stages.core.records import Evidence
from stages.synthesize import grounding
from stages.synthesize.grounding import checking

ROOT = Path(__file__).parent.parent
PARAPHRASED = [pair[1:] for pair in planted.as_models_write()]

# --- planted errors ----------------------------------------------------------------------------


def show(name: str, table: Table) -> None:
    print(f"\n{name:<22}{'pairs':>8}{'rejected':>10}{'share':>8}")
    for sort, (total, rejected) in table.items():
        print(f"{sort:<22}{total:>8}{rejected:>10}{rejected / total:>8.3f}")


WRONG = ("number", "name", "code", "negation", "chunk")


def check(table: Table, caught: float, lost: float) -> None:
    assert share(table, "right") <= lost, table
    for sort in WRONG:
        assert share(table, sort) >= caught, (sort, table)
    assert share(table, "chunk near") >= caught - 0.03, table  # of the same page: like words


@pytest.fixture(scope="module")
def manual() -> list[Planted]:
    return plant(planted.of_this_manual())


def test_of_planted_errors_in_this_manual_95_percent_are_rejected(manual: list[Planted]) -> None:
    table = judge(manual)
    show("this manual", table)
    assert sum(total for sort, (total, _) in table.items() if sort != "right") >= 200
    check(table, caught=0.95, lost=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not planted.PYTHON_DOC.exists(), reason="Debian's python3-doc is not installed")
@pytest.mark.parametrize("half", planted.HALVES)
def test_of_planted_errors_in_pythons_manual_95_percent_are_rejected(half: planted.Half) -> None:
    table = judge(plant(of_pythons_manual(half)))
    show(f"Python's manual, {half}", table)
    check(table, caught=0.95, lost=0.05)


def test_of_planted_errors_in_paraphrases_most_are_rejected() -> None:
    """Answers in words of their own: rules see less there, most of all of negations."""
    table = judge(planted.plant_often(planted.as_models_write()), TITLES)
    show("paraphrases", table)
    assert share(table, "right") <= 0.05, table
    floors = {"number": 0.95, "name": 0.9, "code": 0.95, "chunk": 0.95, "negation": 0.75}
    for sort, floor in floors.items():
        assert share(table, sort) >= floor, (sort, table)


def test_of_statements_turned_round_in_other_words_rules_see_two_of_three() -> None:
    """What rules cannot do is known: benchmarks/grounding.py measures it on a half held out."""
    table = judge(planted.plant_turned(planted.by_hand("tuned")), TITLES)
    show("turned round by hand", table)
    assert share(table, "right") <= 0.3, table
    floors = {"number": 0.95, "name": 0.9, "code": 0.95, "chunk": 0.95, "negation": 0.7}
    for sort, floor in floors.items():
        assert share(table, sort) >= floor, (sort, table)


@pytest.mark.slow
@pytest.mark.skipif(not planted.PYTHON_DOC.exists(), reason="Debian's python3-doc is not installed")
def test_what_answers_by_hand_rest_on_stands_in_pythons_manual() -> None:
    """This manual is edited, so that its sentences are those of the day they were taken."""
    pages: dict[str, str] = {}
    for half in planted.HALVES:
        for page, _, _, said in (row.right for row in planted.by_hand(half)):
            if "/" in page:
                text = pages.setdefault(page, planted.shown(page))
                assert " ".join(said.split()) in text, (page, said)
    assert len(pages) > 100


@pytest.mark.parametrize(
    ("rule", "sort"),
    [
        ("numbers", "number"),
        ("names", "name"),
        ("code", "code"),
        ("negations", "negation"),
        ("opposites", "negation"),
        ("support", "chunk near"),
    ],
)
def test_a_check_without_one_of_its_rules_is_found_out(
    manual: list[Planted], monkeypatch: pytest.MonkeyPatch, rule: str, sort: str
) -> None:
    left = {name: check for name, check in checking.RULES.items() if name != rule}
    monkeypatch.setattr(checking, "RULES", MappingProxyType(left))
    table = judge([row for row in manual if row[0] in ("right", sort)])
    assert share(table, sort) < 0.95, table


# --- single rules ------------------------------------------------------------------------------


def supported(answer: str, evidence: str, question: str = "What does the client do?") -> bool:
    return not grounding.faults(question, answer, [evidence])


@pytest.mark.parametrize(
    ("answer", "evidence", "right"),
    [
        ("The client waits for half a minute.", "The client waits for half a minute.", True),
        ("The client waits 2 minutes.", "The client waits 120 seconds.", True),
        ("The client waits 30 seconds.", "The client waits 30 minutes.", False),
        ("The client makes five attempts.", "The client makes 5 attempts.", True),
        ("The client makes five attempts.", "The client makes 6 attempts.", False),
        ("The client keeps 95% of it.", "The client keeps 95 percent of it.", True),
        ("The client keeps 95 % of it.", "The client keeps a share of 0.95 of it.", True),
        ("The client keeps 95% of it.", "The client keeps 59 percent of it.", False),
        ("The client needs version 3.10.", "The client needs version 3.1.", False),
        ("The client needs 3.11.2.", "The client needs Python 3.11.2.", True),
        ("The client sends -1.", "The client sends 1.", False),
        ("The client sends −1.", "The client sends -1.", True),
        ("The client sends 1,000 rows.", "The client sends 1000 rows.", True),
        ("The client sends 4 GB.", "The client sends 4 GiB.", False),
        ("The client starts 3 workers.", "The client starts 4 workers and 3 timers.", False),
        ("The client has three modes.", "The client has modes: quick, full and dry.", True),
        ("The client has four modes.", "The client has modes: quick, full and dry.", False),
    ],
)
def test_a_number_needs_its_value_its_unit_and_its_noun(
    answer: str, evidence: str, right: bool
) -> None:
    assert supported(answer, evidence) == right


@pytest.mark.parametrize(
    ("answer", "evidence", "right"),
    [
        ("The client never sends cookies.", "The client does not send cookies.", True),
        ("The client sends cookies.", "The client does not send cookies.", False),
        ("The client does not send cookies.", "The client sends cookies.", False),
        ("The client sends no cookies.", "The client does not send cookies.", True),
        ("The client runs without a cache.", "The client runs with a cache.", False),
        ("The client runs if a cache exists.", "The client runs unless a cache exists.", False),
        ("The client enables the cache.", "The client disables the cache.", False),
        ("The client is not allowed to write.", "The client is forbidden to write.", True),
        ("The client writes after it reads.", "The client writes before it reads.", False),
        ("The client sends at most 3 rows.", "The client sends at least 3 rows.", False),
        ("The client sends up to 3 rows.", "The client sends no more than 3 rows.", True),
        ("The client raises the limit.", "The client lowers the limit.", False),
        ("The client is unsupported on Windows.", "The client is not supported on Windows.", True),
    ],
)
def test_a_denied_or_opposite_statement_is_not_supported(
    answer: str, evidence: str, right: bool
) -> None:
    assert supported(answer, evidence) == right


@pytest.mark.parametrize(
    ("answer", "evidence", "right"),
    [
        ("The client reads `client.toml`.", "The client reads client.toml.", True),
        ("The client reads `client.yaml`.", "The client reads client.toml.", False),
        ("The client calls `send()` first.", "The client calls `send(row)` first.", True),
        ("The client takes `--port`.", "The client takes `--port-range`.", False),
        ("The client reads retry_limit.", "The client reads retry_limits.", False),
        (
            "Run `client run --port 80`.",
            "To run the client:\n\n```\nclient run --port 80\n```",
            True,
        ),
        (
            "Run `client run --port 81`.",
            "To run the client:\n\n```\nclient run --port 80\n```",
            False,
        ),
        ("The client asks Kafka first.", "The client asks Redis first.", False),
        ("Kafka keeps what the client asks.", "Redis keeps what the client asks.", False),
        ("The client asks redis first.", "The client asks Redis first.", True),
    ],
)
def test_names_and_identifiers_have_to_stand_in_the_evidence(
    answer: str, evidence: str, right: bool
) -> None:
    assert supported(answer, evidence) == right


def test_a_name_that_the_headings_give_is_known() -> None:
    answer, evidence = "Redis keeps the cache of a client.", "The cache of each client is kept."
    assert grounding.faults("What is kept?", answer, [evidence])[0].startswith("name Redis")
    assert not grounding.faults("What is kept?", answer, [evidence], ["Redis clients"])


def test_a_fault_says_what_is_wrong() -> None:
    found = grounding.faults(
        "How often does the client try?",
        "The client does not try 7 times with `--retry`, as Kafka does.",
        ["The client tries 3 times."],
    )
    assert found == [
        "number 7 is not in the evidence",
        "name Kafka is not in the evidence",
        "code identifier --retry is not in the evidence",
        "negation “not” is not in the evidence",
        "little of it is in the evidence: 2 of 6 words",
    ]


MARKS = "ab .,:;!?`*_|#()[]<>=+-−0123456789%eE\n'’“”é中"
TEXTS = st.lists(st.sampled_from([*MARKS, "not ", "no ", "Docent "]), max_size=60).map("".join)


@given(TEXTS, TEXTS, TEXTS)
def test_any_texts_can_be_compared_and_twice_alike(question: str, answer: str, said: str) -> None:
    first = grounding.faults(question, answer, [said])
    grounding.read.cache_clear()
    assert grounding.faults(question, answer, [said]) == first


SENTENCES = st.lists(
    st.sampled_from([answer for _, answer, _ in PARAPHRASED]), min_size=1, max_size=4, unique=True
)


@given(SENTENCES)
def test_what_the_evidence_says_word_by_word_has_no_wrong_items(said: list[str]) -> None:
    text = " ".join(said)
    for answer in said:
        found = grounding.faults("What is said?", answer, [text])
        assert not [f for f in found if f.startswith(("number", "name", "code", "little"))]


# --- spans -------------------------------------------------------------------------------------


def whole(text: str, start: int = 0) -> Evidence:
    return Evidence(document_id="d", start=start, end=start + len(text.encode()), text=text)


SPAN = """## Wie der Server läuft – über „up“

The server is started with `python -m stages up`. It listens on port 8000, and only users of the
same machine reach it. 日本語のページも読めます。

To stop the server:

```bash
python -m stages down
```

| key | meaning |
|---|---|
| `deploy.max_batch_size` | How many requests of one model are decoded together. |
| `deploy.device` | Where the models run; `auto` takes a GPU where there is one. |

The log is kept for seven days, and it holds no question and no answer of a user.
"""


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (
            "How do I stop the server?",
            "Run `python -m stages down`.",
            ["To stop the server:\n\n```bash\npython -m stages down\n```"],
        ),
        (
            "What does deploy.device set?",
            "Where the models run.",
            ["| `deploy.device` | Where the models run; `auto` takes a GPU where there is one. |"],
        ),
        (
            "How long is the log kept?",
            "For seven days.",
            ["The log is kept for seven days, and it holds no question and no answer of a user."],
        ),
        (
            "How is the server started, and where does it listen?",
            "Start it with `python -m stages up`; it listens on port 8000.",
            [
                "The server is started with `python -m stages up`. It listens on port 8000, and "
                "only users of the\nsame machine reach it."
            ],
        ),
    ],
)
def test_a_long_span_is_narrowed_to_its_supporting_sentences(
    question: str, answer: str, expected: list[str]
) -> None:
    spans = grounding.trim(whole(SPAN, 70), question, answer, 60)
    assert [span.text for span in spans] == expected
    assert not grounding.faults(question, answer, [span.text for span in spans])


def test_a_short_span_stays_as_it_is() -> None:
    span = whole("It is kept for 7 days. Nobody reads it.")
    assert grounding.trim(span, "How long is it kept?", "7 days.", 60) == (span,)


@given(
    st.lists(st.sampled_from([*SPAN.splitlines(keepends=True), "x" * 300, "wort " * 90, "\n"])),
    st.sampled_from([answer for _, answer, _ in PARAPHRASED]),
    st.integers(8, 60),
)
def test_narrowed_spans_are_the_documents_bytes_in_order_and_short(
    lines: list[str], answer: str, most: int
) -> None:
    text = "".join(lines) or "a"
    before = "… ü "
    document = (before + text).encode()
    span = whole(text, len(before.encode()))
    found = grounding.trim(span, "What is it?", answer, most)
    assert found
    reached = span.start
    for part in found:
        assert reached <= part.start <= part.end <= span.end
        assert document[part.start : part.end] == part.text.encode()
        # One word alone may be longer.
        assert count(part.text) <= most or len(part.text.split()) == 1
        reached = part.end
    if any(len(line) > 200 for line in lines):
        return
    kept = grounding.faults("What is it?", answer, [part.text for part in found])
    assert bool(kept) <= bool(grounding.faults("What is it?", answer, [text])) or count(text) > most


def test_no_right_pair_of_this_manual_is_lost_by_narrowing() -> None:
    lost = num_narrowed = 0
    for path in sorted((ROOT / "docs").glob("*.md"))[::3]:
        text = path.read_text()
        for _, question, answer, _ in planted.written(path.name, path.stem, text):
            for _, part in sections(path.stem, text):
                if answer in part and not grounding.faults(question, answer, [part]):
                    spans = grounding.trim(whole(part), question, answer, 60)
                    num_narrowed += 1
                    texts = [span.text for span in spans]
                    assert all(count(text) <= 60 for text in texts)
                    lost += bool(grounding.faults(question, answer, texts))
    assert num_narrowed > 80
    assert lost == 0
