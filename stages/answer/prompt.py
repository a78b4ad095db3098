"""Questions and chunks as messages: the same in training, in evaluation and in service."""

import bisect
import functools
import re
from collections.abc import Callable, Sequence

from rs_bpe.bpe import openai  # type: ignore[import-not-found]

from stages.core import fences
from stages.core.records import Chunk, Message, url_at

NOT_FOUND = "That is not in the documents."
"""The answer to a question that the documents leave open."""

INSTRUCTION = (
    f"Answer from the numbered passages. If the answer is not in them, say exactly: {NOT_FOUND}"
)

SHORTEST_PASSAGE = 16
"""Tokens: less of a passage than this is not worth its title."""


def closed_book(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns as they are: a tuned model answers without a system prompt."""
    return tuple(turns)


def with_context(
    turns: Sequence[Message], chunks: Sequence[Chunk], context_tokens: int
) -> tuple[Message, ...]:
    """The turns after a system message with as much of the numbered chunks as fits."""
    content = _render(fit(chunks, context_tokens))
    return (Message(role="system", content=content), *turns)


def fit(chunks: Sequence[Chunk], context_tokens: int) -> tuple[Chunk, ...]:
    """The chunks that `with_context` shows, best first; the last may be cut short.

    The system message as a whole has at most `context_tokens` tokens (as cl100k counts them). A
    chunk cut short keeps its id and start; its end, text and num_tokens are those of what is shown.
    """
    shown: tuple[Chunk, ...] = ()
    for chunk in chunks:
        if count(_render((*shown, chunk))) <= context_tokens:
            shown = (*shown, chunk)
            continue
        room = context_tokens - count(_render((*shown, shorten(chunk, 0))))
        short = shorten(chunk, room)
        while short.text and count(_render((*shown, short))) > context_tokens:
            room -= 1  # joined texts can have a token more than their sum
            short = shorten(chunk, room)
        return (*shown, short) if short.num_tokens >= SHORTEST_PASSAGE else shown
    return shown


def overhead(chunks: Sequence[Chunk]) -> int:
    """Tokens of the system message beside the texts of these chunks."""
    return count(_render([shorten(chunk, 0) for chunk in chunks]))


def shorten(chunk: Chunk, tokens: int) -> Chunk:
    """The chunk up to the last whole word within so many tokens (as cl100k counts them)."""
    ends = [match.end() for match in re.finditer(r"\S+", chunk.text)]
    num_words = bisect.bisect_right(ends, tokens, key=lambda end: count(chunk.text[:end]))
    return excerpt(chunk, 0, ends[num_words - 1] if num_words else 0)


def excerpt(chunk: Chunk, first: int, last: int) -> Chunk:
    """The chunk with only the characters first:last of its text: their span, address and fence."""
    text = chunk.text[first:last]
    start = chunk.start + len(chunk.text[:first].encode())
    end = start + len(text.encode())
    return chunk.model_copy(
        update={
            "start": start,
            "end": end,
            "url": url_at(chunk, start),
            "marks": tuple(mark for mark in chunk.marks if start < mark[0] < end),
            "text": text,
            "num_tokens": count(text),
            "fence": fences.after(chunk.text[:first], chunk.fence),
        }
    )


def count(text: str) -> int:
    """Tokens of the text as cl100k counts them: the same for every model, without its tokenizer."""
    return _counter()(text)


@functools.cache
def _counter() -> Callable[[str], int]:
    number_of: Callable[[str], int] = openai.cl100k_base().count
    return number_of


def _render(chunks: Sequence[Chunk]) -> str:
    # A fence cut at a chunk's end would make code of the passages after it.
    passages = [
        f"[{number}] {' > '.join(chunk.heading_path)}".rstrip()
        + f"\n{fences.mend(chunk.text, chunk.fence)}"
        for number, chunk in enumerate(chunks, 1)
    ]
    return "\n\n".join([INSTRUCTION, *passages])
