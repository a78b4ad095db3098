"""Chunks as the files of a lexical index, and the index as hits and quotes for a question."""

import functools
import itertools
import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import bm25s  # type: ignore[import-untyped]
import numpy as np

from stages.answer import prompt
from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import Chunk, Citation

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it turns its own DEBUG on

QUOTED_CHUNKS = 3
"""How many of the best chunks a quote's sentences come from."""

HEADING_WEIGHT = 0.4
LEAD_WEIGHT = 1.2
"""What a word of the question counts when it stands in the heading above a sentence and not in it:
a little, and much for the first sentence under the heading, which tells what the heading asks."""

LONG_SENTENCE = 60
"""Terms at which a sentence's score is halved: a long one holds more words by chance."""

QUOTE_SHARE = 0.8
"""A further sentence is quoted if it scores at least this share of the best."""


@dataclass(frozen=True)
class Hit:
    score: float
    chunk: Chunk


@dataclass(frozen=True)
class Quote:
    text: str
    """The sentences, one to a line, or NOT_FOUND."""
    citations: tuple[Citation, ...]
    """One per sentence, in the same order: the document's bytes there are the sentence."""
    hits: tuple[Hit, ...]


# --- the index ---------------------------------------------------------------------------------

ARRAYS = ("data", "indices", "indptr")
"""bm25s's score matrix, (chunk, term), in compressed sparse columns."""


def build(chunks: Sequence[Chunk], folder: Path, k1: float, b: float) -> int:
    """Write the index of these chunks, each with at least one term; how many terms there are."""
    chunks = sorted(chunks, key=lambda chunk: chunk.id)
    documents = [list(indexed_terms(chunk)) for chunk in chunks]
    # Sorted, since bm25s would number the terms in the order of a set.
    vocabulary = sorted({term for document in documents for term in document})
    numbers = {term: number for number, term in enumerate(vocabulary)}
    scorer = bm25s.BM25(k1=k1, b=b, method="lucene")
    scorer.index(
        ([[numbers[term] for term in document] for document in documents], numbers),
        create_empty_token=False,
        show_progress=False,
    )
    store.write(folder / "chunks.jsonl", chunks)
    store.write_json(folder / "vocabulary.json", vocabulary)
    store.write_json(folder / "index.json", {"kind": "lexical", "k1": k1, "b": b})
    for name in ARRAYS:
        with store.replacing(folder / f"{name}.npy") as file:
            np.save(file, scorer.scores[name], allow_pickle=False)
    return len(vocabulary)


@dataclass(frozen=True, eq=False)
class Index:
    """Chunks that can be searched; safe for many threads at once."""

    chunks: tuple[Chunk, ...]
    """In the order of their ids."""
    numbers: dict[str, int]
    """The term's column in the score matrix."""
    scorer: bm25s.BM25

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """Read what `build` wrote."""
        about = store.read_json(folder / "index.json")
        vocabulary = store.read_json(folder / "vocabulary.json")
        chunks = tuple(store.read(folder / "chunks.jsonl", Chunk))
        scorer = bm25s.BM25(k1=about["k1"], b=about["b"], method="lucene")
        arrays = {name: _load(folder / f"{name}.npy") for name in ARRAYS}
        if len(arrays["indptr"]) != len(vocabulary) + 1:
            raise PipelineError(f"{folder}: its files are not of one index; `dvc repro` makes it")
        scorer.scores = {**arrays, "num_docs": len(chunks)}
        scorer.nonoccurrence_array = None
        return cls(chunks, {term: number for number, term in enumerate(vocabulary)}, scorer)

    def search(self, query: str, k: int) -> list[Hit]:
        """The k best chunks that share a term with the query, best first; ties by chunk id."""
        known = [self.numbers[term] for term in dict.fromkeys(terms(query)) if term in self.numbers]
        if not known or k <= 0:
            return []
        scores = self.scorer.get_scores_from_ids(known)  # (chunk,)
        found = np.flatnonzero(scores > 0)
        if len(found) > k:
            least = np.partition(scores[found], -k)[-k]
            found = found[scores[found] >= least]
        # `found` ascends, the chunks are in the order of their ids, and the sort is stable.
        ranked = sorted(found.tolist(), key=lambda i: -scores[i])
        return [Hit(float(scores[i]), self.chunks[i]) for i in ranked[:k]]

    def weight(self, term: str) -> float:
        """The term's inverse document frequency (Lucene's); 0 for a term that no chunk has."""
        number = self.numbers.get(term)
        if number is None:
            return 0.0
        starts = self.scorer.scores["indptr"]
        frequency = int(starts[number + 1] - starts[number])
        return math.log(1 + (len(self.chunks) - frequency + 0.5) / (frequency + 0.5))


def _load(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; `dvc repro` makes it") from None
    except (ValueError, EOFError) as error:
        raise PipelineError(f"{path}: not an array of numbers: {error}") from None
    return array


# --- terms -------------------------------------------------------------------------------------

_STOPWORDS = (
    "a about all also am an and any are as at be been being but by can could did do does doing for "
    "from had has have having he her here hers him his how i if in into is it its itself just let "
    "ll may me might more most much must my no nor not of off on or other our ours out own re "
    "s shall she should so some such t than that the their theirs them then there these they this "
    "those to too upon us ve very was we were what when where which while who whom whose why will "
    "with would you your yours"
)
STOPWORDS = frozenset(_STOPWORDS.split())

_NAME = re.compile(r"\w+(?:[.:/\-]+\w+)*")
_JOINT = re.compile(r"[.:/\-]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{2,}")


def indexed_terms(chunk: Chunk) -> Iterator[str]:
    """What the chunk is found by: its headings and its text."""
    yield from terms("\n".join(chunk.heading_path))
    yield from terms(chunk.text)


def terms(text: str) -> Iterator[str]:
    """Lowercase words without stopwords; a name such as `nn.functional.relu` whole and in parts."""
    for match in _NAME.finditer(unicodedata.normalize("NFKC", text)):
        yield from _terms_of(match.group())


@functools.lru_cache(maxsize=1 << 16)
def _terms_of(name: str) -> tuple[str, ...]:
    """The name, its dotted parts, and their words, each once."""
    found: dict[str, None] = {}
    for part in dict.fromkeys([name, *_JOINT.split(name)]):
        found[_fold(part.lower())] = None
    for part in _JOINT.split(name):
        for words in part.split("_"):
            for word in [words, *_CAMEL.split(words)]:
                if len(word) > 1 or word == name:
                    found[_fold(word.lower())] = None
            for run in _UNSPACED.findall(words):  # no blanks between words: pairs of characters
                found.update((run[i : i + 2], None) for i in range(len(run) - 1))
    return tuple(term for term in found if term and term not in STOPWORDS)


def _fold(word: str) -> str:
    """An English plural as its singular; any other word as it is."""
    if not (word.isascii() and word.isalpha() and len(word) > 3) or word in STOPWORDS:
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "shes", "tches", "nches", "rches")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


# --- sentences ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sentence:
    """A sentence of prose, a table row, a list item or a block of code, in characters.

    A block of code belongs to the sentence that leads to it with a colon.
    """

    start: int
    end: int
    heading: str
    """The heading above it in the same text, or the empty string."""


_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)\s*$")
_ROW = re.compile(r"\s*\|.*\|\s*$")
_ROW_RULE = re.compile(r"\s*\|?[\s:|\-]*-[\s:|\-]*$")
_RULE = re.compile(r" {0,3}([-*_=]\s*){3,}$")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s")
_DEFINITION = re.compile(r":\s+\S")  # under its term
_CODE_SPAN = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_STOP = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s)|[。！？]+[」』”]*")
_ABBREVIATED = (
    "al approx cf co corp dept dr e.g ed eds esp est etc i.e inc jr ltd mr mrs ms prof resp sr st "
    "vs"
)
ABBREVIATIONS = frozenset(_ABBREVIATED.split())
BEFORE_NUMBERS = frozenset(["ch", "eq", "fig", "no", "nr", "p", "pp", "sec", "vol"])


def sentences(text: str) -> list[Sentence]:
    """The sentences of Markdown text in order; headings are none, and neither are table heads."""
    found: list[Sentence] = []
    heading = ""
    for kind, start, end in _blocks(text):
        if kind == "heading":
            heading = text[start:end]
        elif kind == "prose":
            found += [Sentence(*span, heading) for span in _prose_sentences(text, start, end)]
        elif kind == "code" and found and _leads_to(text[found[-1].start : start]):
            found[-1] = Sentence(found[-1].start, end, heading)
        else:
            found.append(Sentence(start, end, heading))
    return found


def _leads_to(text: str) -> bool:
    """Whether nothing stands between a colon and the end of the text."""
    return text.rstrip().endswith(":")


Block = Literal["heading", "prose", "row", "item", "code"]


def _blocks(text: str) -> list[tuple[Block, int, int]]:
    """The text's blocks, stripped, in characters."""
    blocks: list[tuple[Block, int, int]] = []
    fence = ""
    after_blank = True
    lines = text.splitlines(keepends=True)
    at = 0
    for line, next_line in itertools.zip_longest(lines, lines[1:], fillvalue=""):
        start, at = at, at + len(line)
        kind = blocks[-1][0] if blocks else None
        opened = _FENCE.match(line)
        if fence:
            blocks[-1] = ("code", blocks[-1][1], at)
            if opened and opened[1].startswith(fence) and not line.strip(" `~\r\n"):
                fence = ""
                after_blank = True
        elif opened and _is_closed(text, at, opened[1]):
            fence = opened[1]
            blocks.append(("code", start, at))
        elif not line.strip() or _RULE.match(line) or opened:
            after_blank = True
        elif _HEADING.match(line) or (after_blank and _UNDERLINE.match(next_line)):
            blocks.append(("heading", start, at))
            after_blank = True
        elif _ROW.match(line):
            if not _ROW_RULE.match(line):
                blocks.append(("row", start, at))
            elif kind == "row" and not after_blank:
                blocks.pop()  # the rule under a table's head
            after_blank = False
        elif _ITEM.match(line) or _DEFINITION.match(next_line):
            blocks.append(("item", start, at))
            after_blank = False
        elif line.startswith(("    ", "\t")) and after_blank and kind in (None, "heading", "prose"):
            blocks.append(("code", start, at))
            after_blank = False
        elif not after_blank and kind in ("prose", "item", "code"):
            blocks[-1] = (blocks[-1][0], blocks[-1][1], at)
        else:
            blocks.append(("prose", start, at))
            after_blank = False
    return [(kind, *_stripped(text, start, end)) for kind, start, end in blocks]


def _is_closed(text: str, at: int, fence: str) -> bool:
    """Whether the fence has an end: where a chunk was cut inside code, one fence is alone."""
    return re.compile(rf"^ {{0,3}}{fence}[`~]*[ \t]*$", re.MULTILINE).search(text, at) is not None


def _prose_sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    code = [match.span() for match in _CODE_SPAN.finditer(text, start, end)]
    first = start
    for stop in _STOP.finditer(text, start, end):
        inside_code = any(begin <= stop.start() < finish for begin, finish in code)
        if not inside_code and _ends_sentence(text[first : stop.start()], text[stop.end() : end]):
            yield _stripped(text, first, stop.end())
            first = stop.end()
    if text[first:end].strip():
        yield _stripped(text, first, end)


def _ends_sentence(before: str, after: str) -> bool:
    """Whether a full stop between these ends a sentence, not an abbreviation."""
    words = before.split()
    word = words[-1].lstrip("\"'“‘([*_").lower() if words else ""
    following = after.lstrip(" \t\r\n\"'“‘([*_>")[:1]
    if following.islower() or word in ABBREVIATIONS:
        return False
    initial = len(word) == 1 and word.isalpha() and words[-1][-1].isupper()
    of_a_name = initial and (len(words) == 1 or words[-2][0].isupper())
    return not of_a_name and not (word in BEFORE_NUMBERS and following.isdigit())


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())


# --- quotes ------------------------------------------------------------------------------------


def quote(index: Index, question: str, num_sentences: int) -> Quote:
    """The best sentences of the best chunks, verbatim and cited; NOT_FOUND when nothing matches.

    A sentence's score is the inverse document frequency of the question's terms in it, weighed by
    its chunk's score. The quote keeps the order of the page, the page of the best sentence first.
    """
    hits = index.search(question, QUOTED_CHUNKS)
    candidates: dict[tuple[str, int, int], tuple[float, Citation, str]] = {}
    for hit in hits:
        scored = _score_sentences(index, hit.chunk, frozenset(terms(question)))
        for score, sentence in scored:
            part = prompt.excerpt(hit.chunk, sentence.start, sentence.end)
            cited = Citation(
                document_id=part.document_id, url=part.url, start=part.start, end=part.end
            )
            weighed = score * hit.score / hits[0].score
            # Chunks overlap: the first, of the better chunk, stays.
            candidates.setdefault(
                (part.document_id, part.start, part.end), (weighed, cited, part.text)
            )
    # The sort is stable: of equals, the better chunk's earlier sentence comes first.
    ranked = sorted(candidates.values(), key=lambda candidate: -candidate[0])[:num_sentences]
    best = [row for row in ranked if row[0] > 0 and row[0] >= QUOTE_SHARE * ranked[0][0]]
    if not best:
        return Quote(prompt.NOT_FOUND, (), tuple(hits))
    first = best[0][1].document_id
    best.sort(key=lambda row: (row[1].document_id != first, row[1].document_id, row[1].start))
    text = "\n".join(text for _, _, text in best)
    return Quote(text, tuple(citation for _, citation, _ in best), tuple(hits))


def narrow(index: Index, hits: Sequence[Hit], question: str, tokens: int) -> list[Chunk]:
    """The hits' chunks, each reduced to its sentences around the best one, `tokens` in all.

    Tokens are as cl100k counts them. What a short chunk leaves over goes to the ones after it.
    """
    chunks = []
    for place, hit in enumerate(hits):
        part = _around_best(index, hit.chunk, question, tokens // (len(hits) - place))
        tokens -= part.num_tokens
        chunks.append(part)
    return chunks


def _around_best(index: Index, chunk: Chunk, question: str, tokens: int) -> Chunk:
    if prompt.count(chunk.text) <= tokens:
        return prompt.excerpt(chunk, 0, len(chunk.text))
    scored = _score_sentences(index, chunk, frozenset(terms(question)))
    if not scored:
        return prompt.shorten(chunk, tokens)
    best = max(range(len(scored)), key=lambda place: scored[place][0])  # the first of equals
    first = last = best
    part = prompt.excerpt(chunk, scored[best][1].start, scored[best][1].end)
    if part.num_tokens > tokens:
        return prompt.shorten(part, tokens)
    growing = True
    while growing:
        growing = False
        for wider in ((first, last + 1), (first - 1, last)):
            if wider[0] >= 0 and wider[1] < len(scored):
                more = prompt.excerpt(chunk, scored[wider[0]][1].start, scored[wider[1]][1].end)
                if more.num_tokens <= tokens:
                    first, last, part, growing = *wider, more, True
                    break
    return part


def _score_sentences(
    index: Index, chunk: Chunk, asked: frozenset[str]
) -> list[tuple[float, Sentence]]:
    """Each sentence of the chunk with the weight of the question's terms in and above it."""
    path = set(terms("\n".join(chunk.heading_path)))
    scored = []
    heading = None
    for sentence in sentences(chunk.text):
        leads, heading = sentence.heading != heading, sentence.heading
        words = list(terms(chunk.text[sentence.start : sentence.end]))
        within = asked & set(words)
        above = asked & (set(terms(heading)) or path) - within
        score = _total(index, within)
        score += (LEAD_WEIGHT if leads else HEADING_WEIGHT) * _total(index, above)
        scored.append((score / (1 + len(words) / LONG_SENTENCE), sentence))
    return scored


def _total(index: Index, found: Iterable[str]) -> float:
    # fsum: the sum does not depend on the order, which a set's would be.
    return math.fsum(index.weight(term) for term in found)
