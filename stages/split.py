"""Split documents into chunks of tokens, once for retrieval and once for training."""

import bisect
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from langchain_text_splitters import RecursiveCharacterTextSplitter
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from rs_bpe.bpe import openai  # type: ignore[import-not-found]
from tokenizers import Tokenizer

from stages.core import config, progress, store
from stages.core.errors import PipelineError
from stages.core.model import Config as Model
from stages.core.model import Hub, Local, Scratch
from stages.core.records import Chunk, Document, Reject, identify

Count = Callable[[str], int]
"""How many tokens a text has."""

COUNTS_KEPT = 1 << 17
"""Token counts remembered: LangChain asks for the same ones again and again (2.5 times faster)."""


class Product(config.Base):
    """The length of one kind of chunk."""

    chunk_tokens: Annotated[int, Field(ge=8)]
    """Longest chunk, in tokens of the configured model's tokenizer."""
    overlap_tokens: Annotated[int, Field(ge=0)]
    """Most tokens of a chunk's end that the next chunk repeats at its start."""

    @model_validator(mode="after")
    def _overlap_is_shorter(self) -> "Product":
        if self.overlap_tokens >= self.chunk_tokens:
            raise PydanticCustomError(
                "overlap", "expected an overlap_tokens below chunk_tokens, so that a chunk advances"
            )
        return self


class Config(config.Base):
    method: Literal["recursive", "markdown"]
    """Where to cut: recursive at paragraphs, lines and words; markdown at headings before that."""
    retrieval: Product
    """Chunks that are searched and shown to the model as context."""
    training: Product
    """Chunks that the teacher writes questions about."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest fraction of documents that may be rejected before the stage fails."""


def run(cfg: Config, model: Model, documents: Path, out: Path) -> dict[str, float]:
    count = counter(model)
    splitters = {
        "retrieval": Splitter(cfg.retrieval, count),
        "training": Splitter(cfg.training, count),
    }
    rows = list(store.read(documents, Document))
    if not rows:
        raise PipelineError(
            f"{documents}: no documents to split; look at the crawl's rejects.jsonl"
        )
    chunks: dict[str, list[Chunk]] = {product: [] for product in splitters}
    rejects: list[Reject] = []
    num_hard_cuts = 0
    seen: set[str] = set()
    for document in progress.track(rows, "documents", len(rows)):
        reason = _fault(document, seen)
        pieces = {}
        if not reason:
            for product, splitter in splitters.items():
                pieces[product] = split(document, product, splitter, cfg.method)
                longest = max(chunk.num_tokens for chunk in pieces[product])
                if longest > splitter.chunk_tokens:
                    reason = f"one character has {longest} tokens, above the {product} limit"
        if reason:
            rejects.append(Reject(id=document.id, reason=reason, detail=document.url))
            continue
        seen.add(document.id)
        for product, parts in pieces.items():
            chunks[product] += parts
            num_hard_cuts += _num_hard_cuts(document, parts)
    num_split = len(seen)
    assert len(rows) == num_split + len(rejects)
    store.write(out / "rejects.jsonl", rejects)
    if len(rejects) > cfg.max_reject_rate * len(rows):
        raise PipelineError(
            f"split.max_reject_rate: {len(rejects)} of {len(rows)} documents rejected, more than "
            f"{cfg.max_reject_rate:.0%} (the first: {rejects[0].reason}); see {out}/rejects.jsonl"
        )
    for product, parts in chunks.items():
        store.write(out / f"{product}.jsonl", parts)
    return {
        "num_documents": len(rows),
        "num_rejects": len(rejects),
        "num_retrieval_chunks": len(chunks["retrieval"]),
        "num_training_chunks": len(chunks["training"]),
        "mean_retrieval_tokens": _mean(c.num_tokens for c in chunks["retrieval"]),
        "mean_training_tokens": _mean(c.num_tokens for c in chunks["training"]),
        "num_hard_cuts": num_hard_cuts,
    }


def _fault(document: Document, seen: set[str]) -> str:
    """Why this document cannot be split, or the empty string."""
    data = document.text.encode()
    if document.id in seen:
        return "its id stands twice"
    if not document.text.strip():
        return "empty"
    for heading in document.headings:
        inside = 0 <= heading.start < len(data)
        if not inside or data[heading.start] & 0xC0 == 0x80:  # 10xxxxxx continues a character
            return f"heading {heading.title!r} starts at byte {heading.start}, not at a character"
    return ""


def _num_hard_cuts(document: Document, chunks: Iterable[Chunk]) -> int:
    """Chunks that end inside a word, since no blank was near enough."""
    data = document.text.encode()
    following = (data[c.end : c.end + 4].decode(errors="ignore")[:1] for c in chunks)
    return sum(1 for character in following if character and not character.isspace())


def _mean(values: Iterable[int]) -> float:
    numbers = list(values)
    return round(sum(numbers) / len(numbers), 1) if numbers else 0.0


# --- one document ------------------------------------------------------------------------------


class Splitter(RecursiveCharacterTextSplitter):
    """LangChain's recursive splitter, which also says where each chunk stands.

    Searching for a chunk's text (`add_start_index`) finds the wrong place where text repeats
    itself and chunks overlap. Here each piece carries its offset through LangChain's merging.
    """

    def __init__(self, product: Product, count: Count) -> None:
        self.chunk_tokens = product.chunk_tokens
        self.count = count

        def length(text: str) -> int:
            # A lone character cannot be split further: never let it look too long to be merged,
            # for LangChain would hand it back past `_merge_splits`.
            tokens = count(text)
            return tokens if len(text) > 1 else min(tokens, product.chunk_tokens - 1)

        super().__init__(
            chunk_size=product.chunk_tokens,
            chunk_overlap=product.overlap_tokens,
            length_function=length,
            strip_whitespace=False,
        )

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the chunks stand in the text, in characters; none begins or ends with a blank."""
        self._cursor = 0
        self._found: list[tuple[int, int]] = []
        self.split_text(text)
        assert self._cursor == len(text)
        for start, end in self._found:
            yield from self._within_limit(text, *_stripped(text, start, end))

    def _merge_splits(self, splits: Iterable[str], separator: str) -> list[str]:
        # LangChain hands over the pieces of the text one after another, and leaves none out.
        pieces = []
        for split in splits:
            pieces.append(_Piece(split, self._cursor))
            self._cursor += len(split)
        return super()._merge_splits(pieces, separator)

    def _join_docs(self, docs: list[str], separator: str) -> str | None:
        first, last = docs[0], docs[-1]
        assert isinstance(first, _Piece) and isinstance(last, _Piece)
        self._found.append((first.start, last.start + len(last)))
        return None  # the spans are the result

    def _within_limit(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The span in parts within the limit: joined pieces can have more tokens than their sum."""
        while start < end:
            cut = end
            if self.count(text[start:end]) > self.chunk_tokens:
                cut = self._fitting(text, start, end)
            first, last = _stripped(text, start, cut)
            yield first, last
            start, end = _stripped(text, cut, end)

    def _fitting(self, text: str, start: int, end: int) -> int:
        """Where to cut a span that is too long: after a word, else after any character."""
        low, high = start + 1, end
        while low < high - 1:
            middle = (low + high) // 2
            if self.count(text[start:middle].rstrip()) <= self.chunk_tokens:
                low = middle
            else:
                high = middle
        while low > start + 1 and self.count(text[start:low].rstrip()) > self.chunk_tokens:
            low -= 1
        for cut in range(low, (start + low) // 2, -1):
            if text[cut].isspace() and self.count(text[start:cut].rstrip()) <= self.chunk_tokens:
                return cut
        return low


class _Piece(str):
    """A part of the text that knows its offset, in characters."""

    start: int

    def __new__(cls, text: str, start: int) -> "_Piece":
        piece = super().__new__(cls, text)
        piece.start = start
        return piece


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def split(document: Document, product: str, splitter: Splitter, method: str) -> list[Chunk]:
    """The document's chunks in reading order; together they hold every character but blanks.

    No chunk is above the splitter's limit, unless one character alone is.
    """
    data = document.text.encode()
    outline = _outline(document)
    occurrences: Counter[str] = Counter()
    chunks = []
    for start, end in _spans(document, data, splitter, method):
        text = data[start:end].decode()
        _, path, url = outline[bisect.bisect_right(outline, start, key=lambda place: place[0]) - 1]
        chunks.append(
            Chunk(
                # The occurrence tells equal texts of one document apart; the offset would too,
                # but an edit above would change it.
                id=identify(document.id, product, text, occurrences[text]),
                document_id=document.id,
                start=start,
                end=end,
                heading_path=path,
                url=url,
                text=text,
                num_tokens=splitter.count(text),
            )
        )
        occurrences[text] += 1
    return chunks


def _spans(
    document: Document, data: bytes, splitter: Splitter, method: str
) -> Iterator[tuple[int, int]]:
    """Byte spans of the chunks."""
    starts = _section_starts(document, data) if method == "markdown" else [0]
    for first, last in itertools.pairwise([*starts, len(data)]):
        text = data[first:last].decode()
        character, byte, reached = 0, first, 0
        for start, end in sorted(splitter.spans(text)):
            if end <= reached:
                continue  # the rest of a chunk cut hard, which an overlapping chunk holds as well
            byte += len(text[character:start].encode())
            character, reached = start, end
            yield byte, byte + len(text[start:end].encode())


def _section_starts(document: Document, data: bytes) -> list[int]:
    """Where sections begin, in bytes; a heading with nothing under it stays with the next one."""
    borders = sorted({0, *(heading.start for heading in document.headings)})
    starts = [0]
    for start, end in itertools.pairwise([*borders, len(data)]):
        lines = data[start:end].decode().strip().splitlines()
        if any(line.strip() for line in lines[1:]) or start == 0:
            starts.append(end)
    return [start for start in starts if start < len(data)]


def _outline(document: Document) -> list[tuple[int, tuple[str, ...], str]]:
    """From which byte on which headings enclose the text, and its nearest address."""
    outline: list[tuple[int, tuple[str, ...], str]] = [(0, (), document.url)]
    enclosing: list[tuple[int, str]] = []
    url = document.url
    for heading in sorted(document.headings, key=lambda heading: heading.start):
        while enclosing and enclosing[-1][0] >= heading.level:
            enclosing.pop()
        enclosing.append((heading.level, heading.title))
        if heading.anchor:
            url = f"{document.url.partition('#')[0]}#{heading.anchor}"
        outline.append((heading.start, tuple(title for _, title in enclosing), url))
    return outline


# --- token counts ------------------------------------------------------------------------------


def counter(model: Model) -> Count:
    """How many tokens a text has for this model, counted offline and remembered."""
    if isinstance(model, Scratch):
        # rs-bpe reads special tokens such as <|endoftext|> as plain text.
        count = {"cl100k": openai.cl100k_base, "o200k": openai.o200k_base}[model.tokenizer]().count
    else:
        count = _hub_tokenizer(model) if isinstance(model, Hub) else _local_tokenizer(model)
    return functools.lru_cache(maxsize=COUNTS_KEPT)(count)


def _local_tokenizer(model: Local) -> Count:
    folder = store.locate(model.path, "model.path")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise PipelineError(
            f"model.path: {model.path!r} has no tokenizer.json; save it there with "
            "`AutoTokenizer.from_pretrained(…).save_pretrained(folder)`"
        )
    return _tokenizer(path, "model.path")


def _hub_tokenizer(model: Hub) -> Count:
    def fetch(local_files_only: bool) -> str:
        return hf_hub_download(
            model.id, "tokenizer.json", revision=model.revision, local_files_only=local_files_only
        )

    try:
        try:
            path = fetch(local_files_only=True)
        except LocalEntryNotFoundError:
            path = fetch(local_files_only=False)
    except (OSError, ValueError) as error:  # the hub's errors are one or the other
        said = " ".join(str(error).split())
        raise PipelineError(
            f"model.id: {model.id!r} at {model.revision!r}: no tokenizer.json in the hub's cache, "
            f"and none could be fetched ({type(error).__name__}: {said[:200]}); check the name and "
            "the network, or use model=local"
        ) from None
    return _tokenizer(Path(path), "model.id")


def _tokenizer(path: Path, key: str) -> Count:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more precise
        raise PipelineError(f"{key}: {path}: not a tokenizer: {error}") from None
    # Either may be stored in tokenizer.json, and would make every long text look short.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
