"""People's questions and answers, as CSV or JSONL → test questions, and what others answered."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.answer.prompt import NOT_FOUND
from stages.core import config
from stages.core.errors import PipelineError
from stages.core.records import Answer, Chunk, Evidence, Example, Message, addressed, identify


class Config(config.Base):
    question: str
    """Column that holds the question."""
    answer: str
    """Column that holds the right answer; where it is blank, the documents have none."""
    id: str
    """Column that names the row; a file may lack it."""
    url: str
    """Column of the pages that say so, as addresses divided by blanks; a file may lack it."""
    recorded: tuple[str, ...]
    """Columns that hold what other systems answered, which are scored like ours."""


@dataclass
class Gold:
    """What the files hold."""

    examples: list[Example] = field(default_factory=list)
    recorded: list[Answer] = field(default_factory=list)
    """By column and row; a blank cell is no answer."""
    unknown_urls: list[str] = field(default_factory=list)
    """Addresses that the index has no page of."""


def read(path: Path, cfg: Config, chunks: Sequence[Chunk]) -> Gold:
    """The rows of a file, or of a folder's *.csv and *.jsonl in the order of their names.

    The evidence of a row is the page that its URL names, or the part under the URL's anchor, as
    far as the index has it; without a URL retrieval is not judged.
    """
    files = [path] if path.is_file() else sorted([*path.glob("*.csv"), *path.glob("*.jsonl")])
    places = _places(chunks)
    gold = Gold()
    seen: dict[str, str] = {}
    for file in files:
        for where, row in _rows(file, cfg):
            question, answer = _text(row, cfg.question, where), _text(row, cfg.answer, where)
            if not question:
                raise PipelineError(f"{where}: {cfg.question!r} is blank: expected a question")
            named = cfg.id in row
            id = _text(row, cfg.id, where) if named else identify("gold", question, answer)
            if not id:
                raise PipelineError(f"{where}: {cfg.id!r} is blank: expected an id")
            if id in seen:
                what = f"id {id!r}" if named else f"question {question[:60]!r} with its answer"
                raise PipelineError(f"{where}: the {what} stands at {seen[id]} too: remove one")
            seen[id] = where
            urls = _urls(row.get(cfg.url), where)
            gold.unknown_urls += [url for url in urls if _plain(url) not in places]
            found = [span for url in urls for span in _spans(url, places)]
            gold.examples.append(_example(id, question, answer, found))
            for column in cfg.recorded:
                if said := _text(row, column, where):
                    gold.recorded.append(_answer(gold.examples[-1], column, said))
    return gold


def _rows(path: Path, cfg: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with its `file:line`; every configured column is there."""
    needed = [cfg.question, cfg.answer, *cfg.recorded]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, strict=True)
                _check_columns(needed, reader.fieldnames or (), f"{path}:1")
                for row in reader:
                    if None in row or None in row.values():
                        raise PipelineError(
                            f"{path}:{reader.line_num}: expected {len(reader.fieldnames or ())} "
                            "columns like the first line: quote what holds a comma"
                        )
                    yield f"{path}:{reader.line_num}", row
            else:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise PipelineError(f"{path}:{number}: expected an object")
                        _check_columns(needed, row, f"{path}:{number}")
                        yield f"{path}:{number}", row
    except json.JSONDecodeError as error:
        raise PipelineError(f"{path}:{number}: not JSON: {error.msg}") from None
    except csv.Error as error:
        raise PipelineError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    except UnicodeDecodeError:
        raise PipelineError(f"{path}: expected UTF-8 text: save it as such") from None


def _check_columns(needed: Sequence[str], present: Any, where: str) -> None:
    for name in needed:
        if name not in present:
            near = config.nearest(name, present)
            raise PipelineError(
                f"{where}: no column {name!r}{near}; it has {', '.join(map(str, present))}: rename "
                "it, or say in evaluate.gold which column is which"
            )


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise PipelineError(f"{where}: {column!r}: {value!r}: expected text")
    return str(value).strip()


def _urls(value: Any, where: str) -> list[str]:
    listed = value.split() if isinstance(value, str) else value or []
    if not isinstance(listed, list) or not all(isinstance(url, str) for url in listed):
        raise PipelineError(f"{where}: {value!r}: expected an address, or a list of them")
    return listed


Places = dict[str, tuple[str, int, int]]
"""Address, with and without an anchor → document, first and last byte."""


def _places(chunks: Sequence[Chunk]) -> Places:
    places: Places = {}
    for chunk in chunks:
        for url, first, last in {(_plain(chunk.url), chunk.start, chunk.end), *addressed(chunk)}:
            document, start, end = places.get(url, (chunk.document_id, first, last))
            places[url] = (document, min(start, first), max(end, last))
    return places


def _plain(url: str) -> str:
    """The page of an address."""
    return url.partition("#")[0]


def _spans(url: str, places: Places) -> list[tuple[str, int, int]]:
    found = places.get(url) or places.get(_plain(url))
    return [found] if found else []


def _example(id: str, question: str, answer: str, spans: Sequence[tuple[str, int, int]]) -> Example:
    reference = answer or NOT_FOUND
    return Example(
        id=id,
        kind="imported" if answer else "unanswerable",
        track="gold",
        messages=(
            Message(role="user", content=question),
            Message(role="assistant", content=reference),
        ),
        question=question,
        answer=reference,
        chunk_ids=(),
        evidence=tuple(
            Evidence(document_id=document, start=start, end=end, text="")
            for document, start, end in spans
        ),
        call_id="",
    )


def _answer(example: Example, system: str, said: str) -> Answer:
    return Answer(
        example_id=example.id,
        system=system,
        question=example.question,
        answer=said,
        reference=example.answer,
        chunk_ids=(),
        citations=(),
        tokens=0,
    )
