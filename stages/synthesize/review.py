"""Examples to a spreadsheet for a person to judge, and the judged spreadsheet to decisions."""

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from stages.core import config, formats, store
from stages.core.errors import PipelineError
from stages.core.records import Example, Partition
from stages.synthesize.examples import Review

COLUMNS = (
    *("id", "partition", "kind", "question", "answer"),
    *("evidence", "url", "decision", "new answer"),
)
READ = ("id", "decision", "new answer")
"""The columns that an import reads; a person may change all others."""
DECISIONS = get_args(Review.model_fields["decision"].annotation)
PARTITIONS: tuple[Partition, ...] = get_args(Partition)

LONGEST_CELL = 32_000
"""Characters; Excel breaks a cell of more than 32,767 over two rows."""
TAKEN_FOR_DATA = re.compile(r"'*(?:\s*[=+\-@＝＋－＠]|[\t\r\n]|\s*\d.{0,29}\Z)", re.DOTALL)
"""A cell that a spreadsheet may take for a formula, or for a number or date: an id of digits with
one e in it is a number to Excel, which then keeps 15 digits."""


@dataclass(frozen=True)
class Imported:
    """What a spreadsheet said."""

    num_accepted: int
    num_edited: int
    num_rejected: int
    num_undecided: int
    num_changed: int
    """Decisions that were new, or other than before."""


# --- out ---------------------------------------------------------------------------------------


def export(
    examples: Mapping[Partition, Sequence[Example]],
    path: Path,
    reviews: Iterable[Review] = (),
    urls: Mapping[str, str] | None = None,
) -> int:
    """Write a CSV with a row for each example, in their order; how many there were.

    UTF-8 with a byte order mark, without which Excel takes it for another encoding. `reviews` are
    shown as decided; `urls` are the documents' addresses by id.
    """
    decided = {review.example_id: review for review in reviews}
    text = io.StringIO(newline="")
    table = csv.writer(text, quoting=csv.QUOTE_ALL)
    table.writerow(COLUMNS)
    count = 0
    for partition in PARTITIONS:
        for example in examples.get(partition, ()):
            count += 1
            review = decided.get(example.id)
            shown = (_shown(cell) for cell in _cells(partition, example, urls or {}))
            given = (review.decision, _shown(review.answer or "")) if review else ("", "")
            table.writerow(map(guard, (example.id, *shown, *given)))
    with store.replacing(path) as file:
        file.write(b"\xef\xbb\xbf" + text.getvalue().encode())
    return count


def _cells(partition: Partition, example: Example, urls: Mapping[str, str]) -> list[str]:
    """What a person sees of an example, from partition to url."""
    earlier = [turn for turn in example.messages if turn.role != "system"][:-1]
    asked = "\n".join(f"{turn.role}: {turn.content}" for turn in earlier)
    pages = dict.fromkeys(urls.get(span.document_id, "") for span in example.evidence)
    return [
        partition,
        example.kind,
        asked if len(earlier) > 1 else example.question,
        example.answer,
        "\n\n".join(span.text for span in example.evidence),
        "\n".join(page for page in pages if page),
    ]


def _shown(text: str) -> str:
    """The text as a spreadsheet keeps it: no character that breaks a row, and not too many."""
    plain = _plain(text)
    return plain if len(plain) <= LONGEST_CELL else f"{plain[:LONGEST_CELL]} […]"


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").strip()


def guard(text: str) -> str:
    """The text as a cell: after an apostrophe where it would be taken for a formula or a number."""
    return f"'{text}" if TAKEN_FOR_DATA.match(text) else text


def restore(cell: str) -> str:
    """The text that `guard` made the cell of; any other as it is."""
    return cell[1:] if cell.startswith("'") and TAKEN_FOR_DATA.match(cell) else cell


# --- in ----------------------------------------------------------------------------------------


def import_(sheet: Path, review: Path, known: Collection[str]) -> Imported:
    """Merge the decisions of a spreadsheet into review.jsonl; an undecided row changes nothing.

    `known` are the ids of the examples that there are; one that was decided before may be gone. A
    decision takes the place of the earlier one on the same example, and a new one comes last.
    """
    before = list(store.read(review, Review)) if review.exists() else []
    merged = {row.example_id: row for row in before}
    given = read(sheet, {*known, *merged})
    num_changed = 0
    for row in given.values():
        if row is not None and not _says_the_same(merged.get(row.example_id), row):
            merged[row.example_id] = row
            num_changed += 1
    if len(before) != len(merged) or num_changed:
        store.write(review, merged.values())
    counts = Counter(row.decision if row else "undecided" for row in given.values())
    return Imported(
        num_accepted=counts["accept"],
        num_edited=counts["edit"],
        num_rejected=counts["reject"],
        num_undecided=counts["undecided"],
        num_changed=num_changed,
    )


def _says_the_same(before: Review | None, after: Review) -> bool:
    """Whether a decision came back as it went out, for an export does not show all of an answer."""
    if before is None or before.decision != after.decision:
        return False
    return _shown(before.answer or "") == _shown(after.answer or "")


def read(sheet: Path, known: Collection[str]) -> dict[str, Review | None]:
    """The decision of each row by its example's id, None where there is none; the last counts.

    Separated by commas, semicolons or tabs: some spreadsheets write what their country uses.
    """
    try:
        text = sheet.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise PipelineError(
            f"{sheet}: no such file: export the examples, and save them as CSV"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PipelineError(
            f"{sheet}:{line}: not UTF-8: save it as “CSV UTF-8”, in LibreOffice with the "
            "character set Unicode (UTF-8)"
        ) from None
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = formats.table(io.StringIO(text, newline=""), delimiter, sheet)
    _, names = next(rows, (1, []))
    places = _places(sheet, [name.strip() for name in names])
    found: dict[str, Review | None] = {}
    for line, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if any(cell.strip() for cell in cells[len(names) :]):
            raise PipelineError(
                f"{sheet}:{line}: {len(cells)} cells: expected {len(names)} as in line 1; save it "
                "with quotes around text"
            )
        padded = [*cells, *[""] * (len(names) - len(cells))]
        id, decision, answer = (padded[places[name]] for name in READ)
        row = _decide(f"{sheet}:{line}", restore(id.strip()), decision.strip().lower(), answer)
        if row is None:
            found.setdefault(restore(id.strip()), None)
            continue
        if row.example_id not in known:
            raise PipelineError(
                f"{sheet}:{line}: id: {row.example_id!r}: no such example"
                f"{config.nearest(row.example_id, known)}: export again, for the examples have "
                "changed since, or leave the decision blank"
            )
        found.pop(row.example_id, None)
        found[row.example_id] = row
    return found


def _places(sheet: Path, names: list[str]) -> dict[str, int]:
    """Where the columns stand that are read; all that were exported must be there, once."""
    lower = [name.lower() for name in names]
    for name in COLUMNS:
        if lower.count(name) == 1:
            continue
        if name in lower:
            raise PipelineError(f"{sheet}:1: two columns are named {name!r}: remove one")
        raise PipelineError(
            f"{sheet}:1: no column {name!r} among {', '.join(names)}: expected the columns "
            f"{', '.join(COLUMNS)}, as they were exported"
        )
    return {name: lower.index(name) for name in READ}


def _decide(where: str, id: str, decision: str, cell: str) -> Review | None:
    """The row's decision, None where it has none; PipelineError where it makes no sense."""
    answer = _plain(restore(cell))
    if not decision and not answer:
        return None
    if not decision:
        raise PipelineError(
            f"{where}: decision: blank, with a new answer beside it: write edit, or remove the "
            "new answer"
        )
    if decision not in DECISIONS:
        raise PipelineError(
            f"{where}: decision: {decision!r}{config.nearest(decision, DECISIONS)}: expected "
            f"{', '.join(DECISIONS)} or nothing"
        )
    if decision == "edit" and not answer:
        raise PipelineError(
            f"{where}: new answer: blank, with the decision edit: write the right answer, or "
            "decide accept or reject"
        )
    if decision != "edit" and answer:
        raise PipelineError(
            f"{where}: new answer: {answer[:40]!r} with the decision {decision}: decide edit, or "
            "remove the new answer"
        )
    # `decision` is one of DECISIONS, which the type checker cannot see.
    return Review.model_validate({"example_id": id, "decision": decision, "answer": answer or None})
