"""Pairs of an answer and its evidence that grounding is measured on: right and planted ones.

Three sets, each in halves; nothing was tuned on `held_out`. `copied`: what the outline teacher
writes about this manual and Python's, mostly in the page's own words. `reworded`: answers as
language models write them, with errors by rule; the rules were made on these. `turned`: answers by
hand that say it in other words, and wrong ones that turn it round by hand.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from stages.crawl.extract import extract
from stages.crawl.site import Site
from stages.llm import outline
from stages.synthesize import grounding

ROOT = Path(__file__).parent.parent
PYTHON_DOC = Path("/usr/share/doc/python3-doc/html/library")
TITLES = ("Docent", "Python")
"""What the reader of a free-form pair is told beside it: whose manual it is."""

Pair = tuple[str, str, str, str]
"""Page, question, answer and evidence."""
Planted = tuple[str, Pair]
"""A pair with what is wrong with it, or `right`."""
LINK = re.compile(r"!?\[((?:[^\]\[`]|`[^`]*`)*)\]\((?:[^()\s]|\([^()\s]*\))*(?: \"[^\"]*\")?\)")
Half = Literal["tuned", "held_out"]
HALVES: tuple[Half, ...] = ("tuned", "held_out")


# --- right pairs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turned:
    """A pair by hand, with answers that turn it round."""

    right: Pair
    wrong: tuple[str, ...]


def by_hand(half: Half) -> list[Turned]:
    """A page is in one half as a whole, by the hash of its name."""
    rows = yaml.safe_load((ROOT / "tests/planted_by_hand.yaml").read_text())
    return [
        Turned((row["page"], row["ask"], row["right"], row["says"]), tuple(row["wrong"]))
        for row in rows
        if HALVES[hashlib.sha256(row["page"].encode()).digest()[0] % 2] == half
    ]


def as_models_write() -> list[Pair]:
    rows = yaml.safe_load((ROOT / "tests/planted_as_models_write.yaml").read_text())
    return [(f"page {n}", row["ask"], row["right"], row["says"]) for n, row in enumerate(rows)]


def sections(title: str, text: str) -> Iterable[tuple[tuple[str, ...], str]]:
    """The headings above each section, and its text."""
    starts = [m.start() for m in re.finditer(r"(?m)^#{1,3} ", text)]
    path: list[str] = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        heading = re.match(r"(#+) (.+)", text[start:end])
        assert heading
        path = [*path[: len(heading[1]) - 1], heading[2].replace("`", "")]
        yield tuple(path), text[start:end]


def written(page: str, title: str, text: str) -> Iterable[Pair]:
    """What the outline teacher writes about a page."""
    for path, part in sections(title, text):
        for fact in outline.write(outline.Page(title, path, "", part)):
            if fact.kind != "dialogue":
                yield page, fact.forms[0], fact.answer, fact.evidence


def of_this_manual() -> list[Pair]:
    pairs: list[Pair] = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = path.read_text()
        title = re.match(r"# (.+)", text)
        pairs += written(path.name, title[1] if title else path.stem, text)
    return pairs


def of_pythons_manual(half: Half = "tuned", step: int = 1) -> list[Pair]:
    """Of every eighth page; empty where Debian's python3-doc is not installed."""
    pairs: list[Pair] = []
    for path in sorted(PYTHON_DOC.glob("*.html"))[4 * HALVES.index(half) :: 8 * step]:
        url = f"https://docs.python.org/3/library/{path.name}"
        page = extract(path.read_text(), url, Site.around("https://docs.python.org/3/", None))
        pairs += written(path.name, page.title, page.text)
    return pairs


def shown(page: str) -> str:
    """The words of a page of Python's manual, without the addresses of its links."""
    address = "https://docs.python.org/3/"
    text = (PYTHON_DOC.parent / page).read_text()
    text = extract(text, address + page, Site.around(address, None)).text
    return " ".join(LINK.sub(r"\1", text).split())


# --- wrong pairs -------------------------------------------------------------------------------

NUMBERS = (
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
)
DIGITS = re.compile(r"(?<![\w.`/-])\d+(?:\.\d+)?(?![\w/-])")
NAMED = re.compile(
    r"(?<=[a-z,] )[A-Z][A-Za-z]+\b"
    r"|\b(?:Docent|MLflow|DVC|Hydra|Axolotl|OpenAI|Python|Docker|Markdown)\b"
)
TICKED = re.compile(r"`([^`]+)`")
SWAPS = (
    *(("before", "after"), ("at least", "at most"), ("always", "never")),
    *(("enables?", "disables"), ("enabled", "disabled"), ("allows?", "forbids")),
    *(("allowed", "forbidden"), ("minimum", "maximum"), ("first", "last"), ("with", "without")),
    *(("above", "below"), ("more", "fewer"), ("largest", "smallest"), ("longest", "shortest")),
    *(("includes?", "excludes"), ("after", "before"), ("without", "with"), ("unless", "if")),
    *(("raises?", "lowers"), ("never", "always"), ("at most", "at least")),
    *(("maximum", "minimum"), ("lower", "raise"), ("fewer", "more"), ("optional", "required")),
    *(("required", "optional"), ("below", "above"), ("local", "remote"), ("increases?", "lowers")),
)


def instead(answer: str, span: tuple[int, int], new: str) -> str:
    return answer[: span[0]] + new + answer[span[1] :]


def wrong_number(rng: random.Random, answer: str) -> list[str]:
    found = []
    for match in re.finditer(rf"\b(?:{'|'.join(NUMBERS)})\b", answer):
        found.append(instead(answer, match.span(), rng.choice(sorted({*NUMBERS} - {match[0]}))))
    for match in DIGITS.finditer(answer):
        value = float(match[0])
        new = rng.choice([value + 1, value * 10 + 3, value + rng.randrange(2, 30)])
        text = f"{new:.2f}".rstrip("0") if "." in match[0] else f"{new:.0f}"
        found.append(instead(answer, match.span(), text))
    return found


def denied(rng: random.Random, answer: str) -> list[str]:
    """A negation put in or left out, or a word turned into its opposite."""
    found = []
    aids = "is|are|can|must|may|will|was|were|should"
    for match in re.finditer(rf"\b(?:{aids})\b(?! not|n?['’]t)", answer):
        found.append(instead(answer, match.span(), f"{match[0]} not"))
    for match in re.finditer(rf"\b({aids}|do|does) not\b", answer):
        found += [instead(answer, match.span(), match[1])] * 2
    found += [instead(answer, m.span(), "can") for m in re.finditer(r"\bcannot\b", answer)]
    for match in re.finditer(r"\bno (?=[a-z])(?!longer)", answer):
        found.append(instead(answer, match.span(), rng.choice(["a ", "every ", "some "])))
    for one, other in SWAPS:
        found += [instead(answer, m.span(), other) for m in re.finditer(rf"\b{one}\b", answer)]
    return found


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def plant(pairs: Sequence[Pair], seed: int = 0) -> list[tuple[str, Pair]]:
    """Each pair as `right`, and of each sort of error one that it gives, if any."""
    rng = random.Random(seed)
    names = sorted({found for *_, answer, _ in pairs for found in NAMED.findall(answer)})
    codes = sorted({found for *_, answer, _ in pairs for found in TICKED.findall(answer)})

    def swapped(pattern: re.Pattern[str], pool: list[str], mark: str) -> Callable[[str], list[str]]:
        return lambda answer: [
            instead(answer, match.span(), f"{mark}{new}{mark}")
            for match in pattern.finditer(answer)
            if (new := rng.choice(pool)).lower().rstrip("s") not in match[0].lower()
        ]

    makers = {
        "number": lambda answer: wrong_number(rng, answer),
        "name": swapped(NAMED, names, ""),
        "code": swapped(TICKED, codes, "`"),
        "negation": lambda answer: denied(rng, answer),
    }
    planted: list[tuple[str, Pair]] = []
    for place, (page, question, answer, evidence) in enumerate(pairs):
        planted.append(("right", (page, question, answer, evidence)))
        for sort, make in makers.items():
            if found := make(answer):
                planted.append((sort, (page, question, rng.choice(found), evidence)))
        near = [
            row
            for row in pairs[max(0, place - 8) : place + 9]
            if row[0] == page and row[3] != evidence
        ]
        for sort, others in (("chunk", pairs), ("chunk near", near)):
            other = rng.choice(others)[3] if others else evidence
            if other != evidence and words(answer) not in words(other):
                planted.append((sort, (page, question, answer, other)))
    return planted


def plant_often(pairs: Sequence[Pair], num_seeds: int = 4) -> list[Planted]:
    """For few pairs, of each of which more than one error of a sort can be made."""
    return list(dict.fromkeys(row for seed in range(num_seeds) for row in plant(pairs, seed)))


def plant_turned(turned: Sequence[Turned]) -> list[Planted]:
    """Errors of all sorts; a `negation` is one by hand, others are `negation by rule`."""
    by_rule = plant_often([row.right for row in turned])
    return [
        *((f"{sort} by rule" if sort == "negation" else sort, pair) for sort, pair in by_rule),
        *(
            ("negation", (page, question, wrong, evidence))
            for (page, question, _, evidence), wrongs in ((row.right, row.wrong) for row in turned)
            for wrong in wrongs
        ),
    ]


# --- the measure -------------------------------------------------------------------------------

Table = dict[str, tuple[int, int]]
"""For each sort how many there were and how many of them were rejected."""


def judge(planted: Iterable[Planted], context: Sequence[str] = ()) -> Table:
    total: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for sort, (_, question, answer, evidence) in planted:
        total[sort] += 1
        rejected[sort] += bool(grounding.faults(question, answer, [evidence], context))
    return {sort: (total[sort], rejected[sort]) for sort in sorted(total)}


def share(table: Table, sort: str) -> float:
    total, rejected = table[sort]
    return rejected / total
