"""The answer without a language model: the best sentences of the best chunks, verbatim."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stages.answer import prompt
from stages.answer.lexical import terms
from stages.answer.retrieval import Hit, Index
from stages.answer.sentences import Sentence, sentences
from stages.core.records import Chunk, Citation

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
class Quote:
    text: str
    """The sentences, one to a line, or NOT_FOUND."""
    citations: tuple[Citation, ...]
    """One per sentence, in the same order: the document's bytes there are the sentence."""
    hits: tuple[Hit, ...]


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
    return math.fsum(index.lexical.weight(term) for term in found)
