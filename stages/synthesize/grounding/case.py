"""An answer beside what it may rest on, with the sentences of both that repeat each other."""

import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stages.synthesize.grounding.reading import Reading, Sentence

REPEATED = 0.7
"""Share of a sentence's words that another has in the same order, from which it repeats that."""

Alignment = tuple[Sentence, Sentence, Mapping[int, int]]
"""A sentence of the answer, one of the evidence, and which of its words stand where in that."""


@dataclass(frozen=True)
class Case:
    question: Reading
    answer: Reading
    evidence: Reading
    context: Reading

    @functools.cached_property
    def aligned(self) -> list[Alignment]:
        return list(self._alignments())

    def _alignments(self) -> Iterator[Alignment]:
        """The sentences of the answer that repeat one of the evidence nearly word by word."""
        for sentence in self.answer.sentences:
            least = REPEATED * len(sentence.content)
            for other in self.evidence.sentences:
                if not sentence.content or len(sentence.content & other.content) < least:
                    continue
                match = _match(sentence.words, other.words)
                if len(match) >= REPEATED * len(sentence.words):
                    yield sentence, other, match


@functools.lru_cache(maxsize=1 << 10)
def _match(words: tuple[str, ...], others: tuple[str, ...]) -> dict[int, int]:
    found = difflib.SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    return {block.a + n: block.b + n for block in found for n in range(block.size)}
