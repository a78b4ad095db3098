"""Tables: a row's texts become a document, and its question and answer an example."""

import csv
import io
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages.core import config
from stages.core.errors import PipelineError
from stages.core.records import identify
from stages.crawl import files
from stages.crawl.files import addresses, listing, sheet
from stages.crawl.files.draft import Draft, sound
from stages.crawl.files.text import decode
from stages.crawl.page import Page, UnreadableError
from stages.crawl.pages import Answer, Answered, Body, Crawl
from stages.crawl.settings import Address, Config, Name
from stages.crawl.site import Filter

__all__ = ["Table", "explain", "fetch", "parse", "place", "publish"]

MEDIA_TYPE = "application/json"


class Table(config.Base):
    """A table whose columns are named: CSV, TSV, JSONL or Parquet."""

    kind: Literal["table"]
    name: Name
    """Name of the source, which every document carries and which is part of its id."""
    path: Annotated[str, Field(min_length=1)]
    """The file."""
    public_url: Address | None
    """Address of the table as readers know it, where no column says a row's own; null cites the
    file's name."""
    text: list[str]
    """Columns whose texts make a row's document, in this order."""
    title: str | None
    """Column with the document's title."""
    url: str | None
    """Column with the address that readers know the document by."""
    id: str | None
    """Column with what a row is known by when its words change; rows that share it are one
    document with several questions."""
    question: str | None
    """Column with a question that people asked."""
    answer: str | None
    """Column with the answer that they were given."""
    max_file_mib: Annotated[int, Field(gt=0)]
    """Largest table that is read, in MiB."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.question is None) != (self.answer is None):
            raise PydanticCustomError("pair", "question and answer go together: set both or none")
        if not self.text and self.question is None:
            raise PydanticCustomError("text", "name columns in `text`, or `question` and `answer`")
        return self

    @property
    def columns(self) -> list[str]:
        """All that are named, once each."""
        named = [*self.text, self.title, self.url, self.id, self.question, self.answer]
        return list(dict.fromkeys(column for column in named if column))


Row = tuple[int, dict[str, str] | UnreadableError]
"""A row's number in its file, and its cells by column, or what is wrong with it."""


@dataclass
class Entry:
    """What rows say together, as the page store keeps it."""

    number: int
    """Of the first row."""
    key: str
    url: str
    title: str
    texts: list[tuple[str, str]]
    """Column and text."""
    pairs: list[tuple[str, str]] = field(default_factory=list)


# --- fetching ----------------------------------------------------------------------------------


def fetch(cfg: Config, source: Table, crawl: Crawl) -> Generator[int, None, dict[str, int]]:
    """Bring each document that the rows make into the crawl; a bad row is an answer of its own.

    In the end, how many documents were left out, by the limit.
    """
    _, found = listing.local(source.path, Filter.of([], []), "source.path")
    if len(found) != 1 or found[0].reason:
        raise PipelineError(f"{place(source)}: expected one file")
    most = source.max_file_mib << 20
    body = found[0].open(most + 1)
    if len(body) > most:
        raise PipelineError(
            f"{place(source)}: larger than source.max_file_mib={source.max_file_mib}"
        )
    entries, answers = gather(source, read(source, body), found[0].address)
    kept, left = entries[: cfg.max_pages], entries[cfg.max_pages :]
    answers += [_answer(entry, found[0].address) for entry in kept]
    yield from files.keep(crawl, answers, len(answers))
    return {"max_pages": len(left)} if left else {}


def _answer(entry: Entry, file: str) -> Answer:
    body = json.dumps(entry.__dict__, ensure_ascii=False, sort_keys=True).encode()
    return Answer(f"{file}#{entry.key}", body=body, media_type=MEDIA_TYPE)


def read(source: Table, body: bytes) -> Iterator[Row]:
    """The rows with the columns that are named; a column that is missing is the user's mistake."""
    match PurePosixPath(source.path).suffix.lower():
        case ".csv" | ".tsv":
            return _separated(source, body)
        case ".jsonl" | ".ndjson":
            return _lines(source, body)
        case ".parquet":
            return _parquet(source, body)
        case ending:
            raise PipelineError(
                f"{place(source)}: {ending or 'no ending'}: expected a table of .csv, .tsv, "
                ".jsonl or .parquet"
            )


def _check(source: Table, known: Sequence[str]) -> None:
    for column in source.columns:
        if column not in known:
            near = config.nearest(column, known)
            raise PipelineError(
                f"{place(source)}: no column {column!r}{near}: it has {', '.join(known)}"
            )


def _text(source: Table, body: bytes) -> str:
    try:
        return decode(body)
    except UnreadableError as error:
        raise PipelineError(f"{place(source)}: {error.detail}: expected a text") from None


def _separated(source: Table, body: bytes) -> Iterator[Row]:
    text = _text(source, body)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    rows = csv.reader(io.StringIO(text), delimiter=sheet.delimiter(text))
    header = [name.strip() for name in next(rows, [])]
    _check(source, header)
    before = rows.line_num
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield before + 1, UnreadableError("bad_row", str(error))
            continue
        number, before = before + 1, rows.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            said = f"{len(cells)} cells in place of {len(header)}"
            yield number, UnreadableError("bad_row", said)
            continue
        yield number, dict(zip(header, map(_said, cells), strict=True))


def _lines(source: Table, body: bytes) -> Iterator[Row]:
    known: dict[str, None] = {}
    rows: list[Row] = []
    for number, line in enumerate(_text(source, body).split("\n"), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            rows.append((number, UnreadableError("bad_row", f"not JSON: {error}")))
            continue
        if not isinstance(cells, dict):
            rows.append((number, UnreadableError("bad_row", "not an object")))
            continue
        known |= dict.fromkeys(cells)
        rows.append((number, {name: _said(value) for name, value in cells.items()}))
    _check(source, list(known))  # in any row: one that lacks it says nothing there
    yield from rows


def _parquet(source: Table, body: bytes) -> Iterator[Row]:
    # A fifth of a second, which the spider and every worker would take too.
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(body))
        _check(source, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(columns=source.columns):
            for cells in batch.to_pylist():
                number += 1
                yield number, {name: _said(value) for name, value in cells.items()}
    except (pyarrow.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise PipelineError(f"{place(source)}: not a Parquet file: {said}") from None


def _said(value: Any) -> str:
    """A cell in words; a list says its items, one below the other."""
    match value:
        case None:
            return ""
        case str():
            return sound(value).strip()
        case list():
            return "\n\n".join(filter(None, map(_said, value)))
        case dict():
            return json.dumps(value, ensure_ascii=False, sort_keys=True)
        case _:
            return str(value)


def gather(source: Table, rows: Iterable[Row], file: str) -> tuple[list[Entry], list[Answer]]:
    """The documents that rows make together, and the rows that say nothing, each with its number.

    Rows of one id, or else of one address, or else of one text are one document.
    """
    entries: dict[str, Entry] = {}
    by_url: dict[str, str] = {}
    bad: list[Answer] = []

    def leave(number: int, reason: str, detail: str) -> None:
        address, said = f"{file}#row={number}", f"row {number}: {detail}"
        bad.append(Answer(address, status=0, reason=reason, detail=said))

    for number, cells in rows:
        if isinstance(cells, UnreadableError):
            leave(number, cells.reason, cells.detail)
            continue

        def cell(column: str | None, cells: dict[str, str] = cells) -> str:
            return cells.get(column, "") if column else ""

        texts = [(column, cell(column)) for column in source.text if cell(column)]
        question, answer = cell(source.question), cell(source.answer)
        if bool(question) != bool(answer):
            missing = "an answer" if question else "a question"
            leave(number, "bad_row", f"lacks {missing}")
            continue
        if not texts and not question:
            leave(number, "empty", "says nothing")
            continue
        if source.id and not cell(source.id):
            leave(number, "bad_row", f"no {source.id}")
            continue
        url = cell(source.url)
        if url and not url.startswith(("http://", "https://")):
            leave(number, "bad_row", f"{source.url}: {url[:80]!r} is no address")
            continue
        words = [text for _, text in texts] or [question]
        key = cell(source.id) or url or identify(cell(source.title), words)
        entry = Entry(number, key, url, cell(source.title), texts)
        first = entries.setdefault(key, entry)
        if (first.url, first.title, first.texts) != (url, entry.title, texts):
            leave(number, "duplicate_id", f"{key[:80]}: row {first.number} has it with other words")
            continue
        if by_url.setdefault(url, key) != key and url:
            del entries[key]
            leave(number, "duplicate_url", f"{url}: row {entries[by_url[url]].number} has it too")
            continue
        if question and (question, answer) not in first.pairs:
            first.pairs.append((question, answer))
    return list(entries.values()), bad


# --- parsing -----------------------------------------------------------------------------------


def parse(source: Table, address: str, body: Body) -> list[Page]:
    """The document, with the answers that do not stand in its text below it."""
    entry = Entry(**json.loads(body.data))
    draft = Draft()
    title = entry.title or (entry.pairs[0][0] if not entry.texts else "")
    if title:
        draft.heading(1, title)
    for column, text in entry.texts:
        if len(entry.texts) > 1:
            draft.heading(2, column)
        draft.block(text)
    pairs = [(question, sound(answer).lstrip("\n").rstrip()) for question, answer in entry.pairs]
    for question, answer in pairs:
        if not any(answer in text for _, text in entry.texts):
            if question != title:
                draft.heading(2, question)
            draft.block(answer)
    file = address.partition("#")[0]
    url = entry.url or f"{source.public_url or addresses.publish(None, file)}#row={entry.number}"
    page = draft.page(url, title or entry.texts[0][1].partition("\n")[0][:80])
    return [Page(url, page.title, page.text, page.headings, key=entry.key, pairs=tuple(pairs))]


def publish(source: Table, address: str) -> str:
    """Where a row stands that gave no document."""
    return address


def explain(source: Table, answered: Answered) -> str:
    """What a reject says beside its address."""
    return answered.detail


def place(source: Table) -> str:
    """The key and the value that say where the table is, as an error names them."""
    return f"source.path: {source.path!r}"
