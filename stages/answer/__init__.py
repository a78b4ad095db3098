"""A conversation's last question to its answer: with retrieved context or closed-book, cited."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.answer import prompt, retrieval
from stages.core import config
from stages.core.records import Chunk, Citation, Message

if TYPE_CHECKING:  # whoever only builds or reads an index needs no client
    from stages.answer.endpoint import Endpoint


class Config(config.Base):
    top_k: Annotated[int, Field(gt=0)]
    """How many chunks are retrieved for a question."""
    context_tokens: Annotated[int, Field(ge=64)]
    """Longest system message with retrieved chunks, in tokens of cl100k."""
    num_sentences: Annotated[int, Field(gt=0)]
    """Most sentences of a quote, the answer without a model."""
    max_tokens: Annotated[int, Field(gt=0)]
    """Longest answer, in tokens of the model."""
    temperature: Annotated[float, Field(ge=0)]
    """Randomness of sampling; 0 always takes the likeliest token."""
    concurrency: Annotated[int, Field(gt=0)]
    """Requests sent to the endpoint at the same time."""


@dataclass(frozen=True)
class Response:
    """What was said, and where it is written."""

    text: str
    citations: tuple[Citation, ...]
    hits: tuple[retrieval.Hit, ...]
    tokens: int
    """Tokens generated."""


def ask(
    turns: Sequence[Message] | str,
    index: retrieval.Index,
    endpoint: "Endpoint",
    cfg: Config,
    model: Literal["base", "tuned"],
    rag: bool,
) -> Response:
    """Answer the last of the turns (or the one question).

    With `rag`, the citations are what the model was shown: the parts of the retrieved chunks that
    stand in its prompt; where nothing is found, NOT_FOUND is the answer and no model is asked.
    Without it, the tuned model's citation is the one chunk that best matches its answer and the
    question: where that is written, not what the model read. The base model's answers have none,
    and neither does NOT_FOUND.
    """
    if isinstance(turns, str):
        turns = [Message(role="user", content=turns)]
    question = _query(turns)
    shown: Sequence[Chunk] = ()
    hits: list[retrieval.Hit] = []
    messages = prompt.closed_book(turns)
    if rag:
        hits = index.search(question, cfg.top_k)
        if not hits:
            return Response(prompt.NOT_FOUND, (), (), 0)
        room = cfg.context_tokens - prompt.overhead([hit.chunk for hit in hits])
        shown = prompt.fit(retrieval.narrow(index, hits, question, room), cfg.context_tokens)
        messages = prompt.with_context(turns, shown, cfg.context_tokens)
    completion = endpoint.complete(
        model, messages, max_tokens=cfg.max_tokens, temperature=cfg.temperature
    )
    text = completion.text.strip()
    if model == "tuned" and not rag:
        hits = index.search(f"{text}\n{question}", 1)
        shown = [hit.chunk for hit in hits]
    citations = () if text == prompt.NOT_FOUND else tuple(_cite(chunk) for chunk in shown)
    return Response(text, citations, tuple(hits), completion.tokens)


def _query(turns: Sequence[Message]) -> str:
    """What to search for: the last question, and the one before, which it may lean on."""
    return "\n".join([turn.content for turn in turns if turn.role == "user"][-2:])


def _cite(chunk: Chunk) -> Citation:
    return Citation(document_id=chunk.document_id, url=chunk.url, start=chunk.start, end=chunk.end)
