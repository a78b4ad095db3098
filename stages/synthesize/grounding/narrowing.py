"""A long span of evidence to the sentences of it that support the answer."""

import re
from collections.abc import Iterator, Sequence

from stages.answer.prompt import count
from stages.answer.sentences import sentences
from stages.core.records import Evidence
from stages.synthesize.grounding.checking import faults
from stages.synthesize.grounding.claims import alike, stands
from stages.synthesize.grounding.english import GLUE_STEMS
from stages.synthesize.grounding.reading import Reading, read

ITEM_WEIGHT = 3
"""What a number, a name or an identifier counts beside a word, when a span is narrowed."""


def trim(span: Evidence, question: str, answer: str, max_tokens: int) -> tuple[Evidence, ...]:
    """The sentences of the span that support the answer, in reading order; a short span as it is.

    None of them has more than `max_tokens` (as cl100k counts them), so that none is a whole chunk
    that is longer. Together they support the answer if the span as a whole does, unless a sentence
    had to be cut. Faults such as a lost negation are looked for in the whole span, before.
    """
    if count(span.text) <= max_tokens:
        return (span,)
    pieces = list(_pieces(span.text, max_tokens))
    texts = [span.text[start:end] for start, end in pieces]
    told = [read(text) for text in texts]
    asked = read(answer)
    least = faults(question, answer, texts)
    missing = _claims(asked)
    chosen: list[int] = []
    left = list(range(len(pieces)))
    while left:
        gains = {n: sum(weight for c, weight in missing.items() if _says(told[n], c)) for n in left}
        best = max(left, key=lambda n: gains[n])  # the first of equals
        if chosen and gains[best] < 2:  # one word alone is no reason
            kept = [texts[n] for n in sorted(chosen)]
            if len(faults(question, answer, kept)) <= len(least):
                break
            best = max(left, key=lambda n: len(told[n].stems & asked.stems))
        chosen.append(best)
        left.remove(best)
        missing = {c: weight for c, weight in missing.items() if not _says(told[best], c)}
    spans = _joined(span.text, [pieces[n] for n in sorted(chosen)], max_tokens)
    return tuple(_part(span, start, end) for start, end in spans)


def _pieces(text: str, max_tokens: int) -> Iterator[tuple[int, int]]:
    """The text's sentences in characters; a long one in lines, and a long line in words."""
    whole = [(sentence.start, sentence.end) for sentence in sentences(text)]
    for start, end in whole or [(0, len(text))]:
        if count(text[start:end]) <= max_tokens:
            yield start, end
            continue
        for line in re.finditer(r"[^\n]*\S[^\n]*", text[start:end]):
            yield from _cut(text, start + line.start(), start + line.end(), max_tokens)


def _cut(text: str, start: int, end: int, max_tokens: int) -> Iterator[tuple[int, int]]:
    words = [(start + m.start(), start + m.end()) for m in re.finditer(r"\S+", text[start:end])]
    first, last = words[0]
    for begin, finish in words[1:]:
        if count(text[first:finish]) > max_tokens:
            yield first, last
            first = begin
        last = finish
    yield first, last


def _joined(text: str, spans: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Spans with nothing between them as one, as long as that is short enough."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if (
            joined
            and not text[joined[-1][1] : start].strip()
            and count(text[joined[-1][0] : end]) <= most
        ):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _part(span: Evidence, start: int, end: int) -> Evidence:
    first = span.start + len(span.text[:start].encode())
    text = span.text[start:end]
    return span.model_copy(update={"start": first, "end": first + len(text.encode()), "text": text})


def _claims(answer: Reading) -> dict[tuple[str, str], int]:
    """What has to be supported, by its sort, with what it counts."""
    claims = {("word", said): 1 for said in sorted(alike(answer.stems - GLUE_STEMS))}
    claims |= {("number", number.value): ITEM_WEIGHT for number in answer.numbers}
    claims |= {("name", name.lower()): ITEM_WEIGHT for name in answer.names}
    return claims | {("code", code): ITEM_WEIGHT for code in answer.code}


def _says(told: Reading, claim: tuple[str, str]) -> bool:
    sort, what = claim
    if sort == "word":
        return what in alike(told.stems)
    if sort == "number":
        return what in {number.value for number in told.numbers}
    return what in told.words if sort == "name" else stands(what, told.text)
