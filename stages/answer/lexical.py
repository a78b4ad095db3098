"""Chunks as a BM25 matrix of their terms, and the score of a question's terms in each chunk."""

import functools
import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import bm25s  # type: ignore[import-untyped]
import numpy as np

from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import Chunk

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it turns its own DEBUG on

ARRAYS = ("data", "indices", "indptr")
"""bm25s's score matrix, (chunk, term), in compressed sparse columns."""


def build(chunks: Sequence[Chunk], folder: Path, k1: float, b: float) -> int:
    """Write the matrix of these chunks, each with at least one term; how many terms there are."""
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
    store.write_json(folder / "vocabulary.json", vocabulary)
    for name in ARRAYS:
        with store.replacing(folder / f"{name}.npy") as file:
            np.save(file, scorer.scores[name], allow_pickle=False)
    return len(vocabulary)


@dataclass(frozen=True, eq=False)
class Lexical:
    """The matrix; safe for many threads at once."""

    numbers: dict[str, int]
    """The term's column."""
    scorer: bm25s.BM25
    num_chunks: int

    @classmethod
    def open(cls, folder: Path, num_chunks: int) -> "Lexical":
        """Read what `build` wrote of so many chunks."""
        vocabulary = store.read_json(folder / "vocabulary.json")
        scorer = bm25s.BM25(method="lucene")
        arrays = {name: load_array(folder / f"{name}.npy") for name in ARRAYS}
        if len(arrays["indptr"]) != len(vocabulary) + 1:
            raise PipelineError(f"{folder}: its files are not of one index; `dvc repro` makes it")
        scorer.scores = {**arrays, "num_docs": num_chunks}
        scorer.nonoccurrence_array = None
        return cls({term: number for number, term in enumerate(vocabulary)}, scorer, num_chunks)

    def scores(self, text: str) -> np.ndarray:
        """BM25 of the text's terms in each chunk, (chunk,); 0 where it shares none."""
        return self._scores(dict.fromkeys(terms(text)))

    def shares(self, text: str) -> np.ndarray:
        """BM25 of each chunk as a share of the most that it could be: (chunk,), 0…1.

        Of several lines, which may be several questions, the line counts that a chunk has most of.
        A term that no chunk has weighs as if one had. REQUESTS count where there is nothing else.
        """
        shares = np.zeros(self.num_chunks, np.float32)
        for line in text.splitlines():
            asked = dict.fromkeys(terms(line))
            asked = {term: None for term in asked if term not in REQUESTS} or asked
            most = math.fsum(self.weight(term) or self.highest_weight for term in asked)
            shares = np.maximum(shares, self._scores(asked) / (most or 1.0))
        return shares

    def _scores(self, asked: Iterable[str]) -> np.ndarray:
        known = [self.numbers[term] for term in asked if term in self.numbers]
        if not known:
            return np.zeros(self.num_chunks, np.float32)
        scores: np.ndarray = self.scorer.get_scores_from_ids(known)
        return scores

    def weight(self, term: str) -> float:
        """The term's inverse document frequency (Lucene's); 0 for a term that no chunk has."""
        number = self.numbers.get(term)
        if number is None:
            return 0.0
        starts = self.scorer.scores["indptr"]
        return self._rarity(int(starts[number + 1] - starts[number]))

    def total(self, found: Iterable[str]) -> float:
        """The weights of these terms together."""
        # fsum: the sum does not depend on the order, which a set's would be.
        return math.fsum(self.weight(term) for term in found)

    @property
    def highest_weight(self) -> float:
        """The weight that a term had if it stood in one chunk."""
        return self._rarity(1)

    def _rarity(self, frequency: int) -> float:
        return math.log(1 + (self.num_chunks - frequency + 0.5) / (frequency + 0.5))


def load_array(path: Path) -> np.ndarray:
    """An array of numbers; PipelineError where there is none."""
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

_REQUESTS = (
    "briefly describe explain find give hello help hi know like look need please say sentence show "
    "tell thank understand want word"
)
REQUESTS = frozenset(_REQUESTS.split())
"""Words that ask for an answer and mostly are not what is asked about."""

_NAME = re.compile(r"\w+(?:[.:/\-]+\w+)*")
_JOINT = re.compile(r"[.:/\-]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Of a link; what stands in brackets after code such as `rows[0](x)` is none.
_ADDRESS = re.compile(
    r"\]\((?:https?:|mailto:|[./#])[^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?: \"[^\"\n]*\")?\)"
)
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{2,}")


def indexed_terms(chunk: Chunk) -> Iterator[str]:
    """What the chunk is found by: its headings and its text."""
    yield from terms("\n".join(chunk.heading_path))
    yield from terms(unlinked(chunk.text))


def unlinked(text: str) -> str:
    """Markdown without the addresses of its links, whose words say nothing of the text."""
    return _ADDRESS.sub("]", text)


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
