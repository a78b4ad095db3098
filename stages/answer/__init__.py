"""A conversation's last question to its answer: with retrieved context or closed-book, cited."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from stages.answer import prompt, quoting, retrieval
from stages.answer.endpoint import Chat
from stages.core import config
from stages.core.records import Chunk, Citation, Message, System


class Config(config.Base):
    search: retrieval.Search
    """How chunks are found."""
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


@dataclass(frozen=True)
class Response:
    """What was said, and where it is written."""

    text: str
    citations: tuple[Citation, ...]
    hits: tuple[retrieval.Hit, ...]
    tokens: int
    """Tokens generated."""
    cost_usd: float = 0.0
    """What the endpoint asked for it, in US dollars."""
    cached: bool = False
    """Whether the endpoint had answered the same before, so that its time says nothing."""


def ask(
    system: System,
    turns: Sequence[Message] | str,
    index: retrieval.Index,
    endpoint: Chat | None,
    cfg: Config,
    shots: Sequence[Message] = (),
) -> Response:
    """Answer the last of the turns (or the one question) as this system does.

    `quote` needs no endpoint. `base_few_shot` sees the `shots`, questions with their answers, as
    turns before its own. With retrieval (`base_rag`, `tuned_rag`), the citations are what the
    model was shown: the parts of the retrieved chunks that stand in its prompt; where nothing is
    found, NOT_FOUND is the answer and no model is asked. Without it, the tuned model's citation is
    the one chunk that best matches its answer and the question: where that is written, not what
    the model read. Where a chunk has several addresses (pages, slides), a citation's is that of the
    sentence nearest to the answer. The base model's answers have none, and neither does NOT_FOUND.
    """
    if isinstance(turns, str):
        turns = [Message(role="user", content=turns)]
    question = _query(turns)
    if system == "quote":
        said = quoting.quote(index, question, cfg.num_sentences)
        return Response(said.text, said.citations, said.hits, 0)
    assert endpoint is not None, f"{system} is a model: it needs an endpoint"
    hits: list[retrieval.Hit] = []
    shown: Sequence[Chunk] = ()
    messages = prompt.closed_book([*(shots if system == "base_few_shot" else ()), *turns])
    if system in ("base_rag", "tuned_rag"):
        hits = index.search(question, cfg.top_k)
        if not hits:
            return Response(prompt.NOT_FOUND, (), (), 0)
        near = index.around(hits)
        room = cfg.context_tokens - prompt.overhead([hit.chunk for hit in near])
        shown = prompt.fit(quoting.narrow(index, near, question, room), cfg.context_tokens)
        messages = prompt.with_context(turns, shown, cfg.context_tokens)
    completion = endpoint.complete(
        "base" if system.startswith("base") else "tuned",
        messages,
        max_tokens=cfg.max_tokens,
        temperature=cfg.temperature,
    )
    text = completion.text.strip()
    said_of = f"{text}\n{question}"
    if system == "tuned":
        hits = index.search(said_of, 1)
        shown = [hit.chunk for hit in hits]
    if text == prompt.NOT_FOUND:
        shown = ()
    citations = tuple(quoting.cite(index, chunk, said_of) for chunk in shown)
    return Response(
        text, citations, tuple(hits), completion.tokens, completion.cost_usd, completion.cached
    )


def _query(turns: Sequence[Message]) -> str:
    """What to search for: the last question, and the one before, which it may lean on."""
    return "\n".join([turn.content for turn in turns if turn.role == "user"][-2:])
