"""Trained facts → the same questions with passages in the prompt, as retrieval will show them.

As RAFT (Zhang et al. 2024, arXiv 2403.10131) does: the right passage among distractors, and
sometimes the distractors alone, when the right answer is that there is none.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from stages.answer import prompt, quoting
from stages.answer.prompt import NOT_FOUND
from stages.answer.retrieval import Hit, Index
from stages.core import config
from stages.core.records import Chunk, Evidence, Example, Message, Reject, identify


class Config(config.Base):
    """The prompt of `answer`, with numbers of its own: a change there trains nothing again."""

    top_k: Annotated[int, Field(gt=0)]
    """How many passages a prompt holds; `answer.top_k` is what service shows."""
    context_tokens: Annotated[int, Field(ge=64)]
    """Longest system message with passages, in tokens of cl100k; see `answer.context_tokens`."""


FOUND = 10
"""Chunks among which the distractors are looked for, beyond those that are shown."""


def in_context(
    examples: Sequence[Example],
    index: Index,
    asking: Config,
    absent_share: float,
    seed: int,
) -> tuple[list[Example], list[Reject]]:
    """Each example with the passages that its question finds, and those that have no room.

    `index` holds trained pages only. The prompt is the one of service: `answer.prompt` renders it.
    """
    made = []
    rejects = []
    for example in examples:
        absent = _chance(seed, example) < absent_share
        shown = _shown(example, index, asking, absent)
        if shown is None:
            why = "raft: no room for the evidence" if not absent else "raft: no other passage"
            rejects.append(Reject(id=example.id, reason=why, detail=example.question))
            continue
        made.append(_example(example, shown, asking.context_tokens, absent))
    assert len(made) + len(rejects) == len(examples)
    return made, rejects


def _chance(seed: int, example: Example) -> float:
    """From 0 to 1, by what is asked."""
    return int(identify(seed, "absent", example.question), 16) / 16**16


def _shown(example: Example, index: Index, asking: Config, absent: bool) -> Sequence[Chunk] | None:
    """The passages, cut as in service; None where the right one cannot be among them."""
    hits = index.search(example.question, asking.top_k + FOUND)
    right = [hit for hit in hits if _holds(hit.chunk, example.evidence)]
    others = [hit for hit in hits if hit not in right]
    if absent:
        chosen = others[: asking.top_k]
    else:
        if not right:
            held = [chunk for chunk in index.chunks if _holds(chunk, example.evidence)]
            right = [Hit(0.0, chunk) for chunk in held]
        if not right:
            return None
        chosen = [hit for hit in hits[: asking.top_k] if hit in others or hit == right[0]]
        if right[0] not in chosen:
            chosen = [*chosen[: asking.top_k - 1], right[0]]
    if not chosen:
        return None
    room = asking.context_tokens - prompt.overhead([hit.chunk for hit in chosen])
    narrowed = quoting.narrow(index, chosen, example.question, room)
    if not absent:
        place = chosen.index(right[0])
        if not _holds(narrowed[place], example.evidence):
            narrowed[place] = _around(right[0].chunk, example.evidence[0], room // len(chosen))
    shown = prompt.fit(narrowed, asking.context_tokens)
    if not absent and not any(_holds(chunk, example.evidence) for chunk in shown):
        return None
    return shown


def _holds(chunk: Chunk, evidence: Sequence[Evidence]) -> bool:
    """Whether the chunk has the first of the evidence, which is the answer's, whole."""
    return any(
        chunk.document_id == span.document_id
        and chunk.start <= span.start
        and span.end <= chunk.end
        for span in evidence[:1]
    )


def _around(chunk: Chunk, span: Evidence, tokens: int) -> Chunk:
    """The chunk from the evidence on."""
    first = len(chunk.text.encode()[: span.start - chunk.start].decode())
    return prompt.shorten(prompt.excerpt(chunk, first, len(chunk.text)), tokens)


def _example(example: Example, shown: Sequence[Chunk], tokens: int, absent: bool) -> Example:
    said = NOT_FOUND if absent else example.answer
    turns = prompt.with_context(example.messages[:-1], shown, tokens)
    return example.model_copy(
        update={
            "id": identify("raft", example.id, [chunk.id for chunk in shown], said),
            "kind": "raft",
            "messages": (*turns, Message(role="assistant", content=said)),
            "answer": said,
            "chunk_ids": tuple(chunk.id for chunk in shown),
            "evidence": () if absent else example.evidence,
        }
    )
