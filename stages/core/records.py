"""The rows that stages exchange: frozen, joined by id, never by position."""

import bisect
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal[
    "factual",
    "howto",
    "definition",
    "code",
    "multihop",
    "dialogue",
    "unanswerable",
    "paraphrase",
    "raft",
    "style",
    "imported",
]
Track = Literal["same_fact", "held_out", "gold"]
"""What a test question tests: a new wording of a trained fact, a page that was never trained on,
or what people asked."""
Partition = Literal["train", "validation", "test"]
System = Literal["quote", "base", "base_few_shot", "base_rag", "tuned", "tuned_rag"]


def identify(*parts: object) -> str:
    """A stable 16-digit id of the parts: the head of the SHA-256 of their JSON."""
    canonical = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Heading(Record):
    """A heading of a document: where its Markdown line starts, and its anchor on the page.

    One without a title is a mark: it gives the text from there on an anchor, such as `page=3`, and
    has no place in the outline.
    """

    start: int
    """Byte offset of the heading's line in the document's UTF-8 text."""
    level: int
    title: str
    anchor: str


class Document(Record):
    """One page, file or symbol as Markdown. Its id comes from its address, so an edit keeps it."""

    id: str
    url: str
    title: str
    text: str
    source: str
    """Name of the source that it came from."""
    headings: tuple[Heading, ...] = ()


class Imported(Record):
    """A question that people asked, with the answer that they were given, which stands in the
    document's text.
    """

    id: str
    question: str
    answer: str
    document_id: str


Mark = tuple[int, str]
"""From which byte of the document on the address has which anchor. A bare tuple, since an index
holds one or more for every heading, page or line."""


class Chunk(Record):
    """A span of a document. `text` is exactly the document's UTF-8 bytes start:end.

    The id comes from the document and the text, not from the offsets: an edit elsewhere keeps it.
    """

    id: str
    document_id: str
    start: int
    end: int
    heading_path: tuple[str, ...]
    url: str
    """The document's address with the anchor nearest to where the chunk begins."""
    text: str
    num_tokens: int
    source: str = ""
    """The document's source, which a search may be kept to."""
    fence: str = ""
    """The opening line of the code fence that the text begins in; empty outside of one."""
    marks: tuple[Mark, ...] = ()
    """Where the address changes inside, in order: from `start` up to the first it is `url`."""


def url_at(chunk: Chunk, start: int) -> str:
    """The address of what starts at this byte of the chunk's document."""
    place = bisect.bisect_right(chunk.marks, start, key=lambda mark: mark[0])
    return anchored(chunk.url, chunk.marks[place - 1][1]) if place else chunk.url


def addressed(chunk: Chunk) -> Iterator[tuple[str, int, int]]:
    """The chunk's addresses in order, each with the bytes of the document that it stands for."""
    starts = [chunk.start, *(start for start, _ in chunk.marks), chunk.end]
    for start, end in itertools.pairwise(starts):
        yield url_at(chunk, start), start, end


def anchored(url: str, anchor: str) -> str:
    return f"{url.partition('#')[0]}#{anchor}"


class Evidence(Record):
    """The span of a document that supports an answer; `text` is the document's own bytes."""

    document_id: str
    start: int
    end: int
    text: str


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class Assignment(Record):
    """Which partition a document belongs to, decided before any question is written."""

    document_id: str
    cluster_id: str
    partition: Partition


class Example(Record):
    """A question with its answer, where it is written, and the call that wrote it."""

    id: str
    kind: Kind
    track: Track | None
    """Of a test question."""
    messages: tuple[Message, ...]
    question: str
    answer: str
    chunk_ids: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    call_id: str


class Preference(Record):
    example_id: str
    chosen: str
    rejected: str


class Citation(Record):
    """Where an answer says that it is written."""

    document_id: str
    url: str
    start: int
    end: int


class Answer(Record):
    """What one system said to one test question."""

    example_id: str
    system: str
    question: str
    answer: str
    reference: str
    chunk_ids: tuple[str, ...]
    citations: tuple[Citation, ...]
    tokens: int
    """Tokens generated; 0 for a system without a model."""


class Reject(Record):
    """A row that a stage left out, and why."""

    id: str
    reason: str
    detail: str = ""
