"""The answer without a language model: the best sentences of the best chunks, verbatim."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from stages.answer import prompt
from stages.answer.lexical import terms, unlinked
from stages.answer.retrieval import Hit, Index
from stages.answer.sentences import Sentence, sentences
from stages.core.records import Chunk, Citation, url_at

QUOTED_CHUNKS = 3
"""How many of the best chunks a quote's sentences come from."""

HEADING_WEIGHT = 0.4
LEAD_WEIGHT = 1.2
"""What a word of the question counts when it stands in the heading above a sentence and not in it:
a little, and much for the first sentence under the heading, which tells what the heading asks."""

WORDS_WEIGHT = 0.7
"""What words count in a question's support, where words and meaning together count 1; measured in
benchmarks/retrieval.py, as `answer.search.min_support` is."""

LONG_SENTENCE = 60
"""Terms at which a sentence's score is halved: a long one holds more words by chance."""

QUOTE_SHARE = 0.8
"""A further sentence is quoted if it scores at least this share of the best."""


@dataclass(frozen=True)
class Quote:
    text: str
    """The sentences, one to a line, or NOT_FOUND."""
    citations: tuple[Citation, ...]
    """One per sentence, in the same order: the document's bytes there are the sentence."""
    hits: tuple[Hit, ...]


def quote(index: Index, question: str, num_sentences: int) -> Quote:
    """The best sentences of the best chunks, verbatim and cited; NOT_FOUND if none is good enough.

    A sentence's score is the inverse document frequency of the question's terms in it, weighed by
    its chunk's score. The quote keeps the order of the page, the page of the best sentence first.
    """
    hits = index.search(question, QUOTED_CHUNKS)
    if support(hits) < index.how.min_support:
        return Quote(prompt.NOT_FOUND, (), tuple(hits))
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


def support(hits: Sequence[Hit]) -> float:
    """How much of a question the best of these chunks has, from 0 to 1.

    By words it is the highest share of BM25 that is reached. Where there are vectors, the highest
    cosine counts too, but less: a question of what is not there can mean much the same.
    """
    words = max((hit.words for hit in hits), default=0.0)
    cosines = [hit.cosine for hit in hits if hit.cosine is not None]
    if not cosines:
        return words
    return WORDS_WEIGHT * words + (1 - WORDS_WEIGHT) * max(0.0, *cosines)


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


def cite(index: Index, chunk: Chunk, said: str) -> Citation:
    """The chunk as what an answer rests on; its address is that of the sentence nearest to it."""
    start = chunk.start
    if chunk.marks:
        scored = _score_sentences(index, chunk, frozenset(terms(said)))
        score, sentence = max(scored, key=lambda row: row[0], default=(0.0, None))
        if sentence and score > 0:
            start += len(chunk.text[: sentence.start].encode())
    return Citation(
        document_id=chunk.document_id,
        url=url_at(chunk, start),
        start=chunk.start,
        end=chunk.end,
    )


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
    for sentence, words, num_words, headed in _read(chunk.text):
        leads, heading = sentence.heading != heading, sentence.heading
        within = asked & words
        above = asked & (headed or path) - within
        score = index.lexical.total(within)
        score += (LEAD_WEIGHT if leads else HEADING_WEIGHT) * index.lexical.total(above)
        scored.append((score / (1 + num_words / LONG_SENTENCE), sentence))
    return scored


@functools.lru_cache(maxsize=1 << 12)
def _read(text: str) -> list[tuple[Sentence, frozenset[str], int, frozenset[str]]]:
    """The text's sentences, each with its terms, how many there are, and those of its heading."""
    read = []
    for sentence in sentences(text):
        words = list(terms(unlinked(text[sentence.start : sentence.end])))
        headed = frozenset(terms(sentence.heading))
        read.append((sentence, frozenset(words), len(words), headed))
    return read
