"""What the synthesize stage can be told."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from stages.core import config, formats
from stages.synthesize import context, tasks
from stages.synthesize.tasks import Prompts

Count = Annotated[int, Field(ge=0)] | None
Share = Annotated[float, Field(ge=0, le=1)]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise PydanticCustomError(
            "pattern", "expected a regular expression: {why}", {"why": str(error)}
        ) from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


class Shares(config.Base):
    """How many examples of each kind."""

    factual: Share
    """Fraction of the facts of this kind that is kept."""
    howto: Share
    """Fraction of the facts of this kind that is kept."""
    definition: Share
    """Fraction of the facts of this kind that is kept."""
    code: Share
    """Fraction of the facts of this kind that is kept."""
    dialogue: Share
    """Fraction of the facts of this kind that is kept."""
    multihop: Share
    """Fraction of the chunks that the teacher is asked about with a linked or similar one."""
    unanswerable: Share
    """Fraction of the chunks that the teacher writes open questions to, and of the facts on a name
    that become open questions on an invented one."""
    style: Share
    """Fraction of the chunks whose paragraphs become answers as they stand."""
    raft: Share
    """Fraction of the trained questions that are also trained with passages in the prompt."""
    raft_absent: Share
    """Fraction of those whose passages lack the answer, so that "not in the documents" is right."""
    preferences: Share
    """Fraction of the trained facts that also give a pair of a right and a wrong answer."""


class Config(config.Base):
    seed: int
    """Decides the partitions, the held-out wordings and what is left out above a maximum."""
    duplicate_threshold: Annotated[float, Field(gt=0, le=1)]
    """Similarity (Jaccard index of five-word shingles) from which documents share a partition."""
    validation_share: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of the clusters of documents that validate the training."""
    test_share: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of the clusters of documents that are held out for the test."""
    skip_headings: tuple[Pattern, ...]
    """Chunks under such headings are not asked about: regular expressions that search."""
    skip_text: tuple[Pattern, ...]
    """Chunks with such text are not asked about: regular expressions that search."""
    min_chunk_words: Annotated[int, Field(ge=0)]
    """Shortest chunk that the teacher is asked about, in words."""
    judge_chunks: bool
    """Whether a teacher that is a language model is first asked, of each chunk, whether it is worth
    questions: one short call a chunk."""
    prompts: Prompts
    """What the teacher is told."""
    shares: Shares
    """How many examples of each kind."""
    formats: dict[str, formats.Config]
    """Further formats by name, each written into a folder of its name; empty for none."""
    context: context.Config
    """What prompts with passages hold."""
    num_held_forms: Annotated[int, Field(ge=1, le=len(tasks.FORMS) - 2)]
    """Wording forms of each kind, of seven, that are kept from training and tested."""
    max_answer_words: Annotated[int, Field(ge=1)]
    """Longest answer that is taken from the teacher, in words."""
    min_answer_words: Annotated[int, Field(ge=1)]
    """Shortest answer that is kept, in words."""
    max_evidence_tokens: Annotated[int, Field(ge=20)]
    """Longest span of evidence, in tokens of cl100k; a longer one is cut to what supports."""
    near_duplicate_threshold: Annotated[float, Field(gt=0, le=1)]
    """Similarity (Jaccard index) from which the second of two facts is left out."""
    semantic_duplicate_threshold: Annotated[float, Field(gt=0, le=1)]
    """Cosine of their embeddings from which the second of two facts is left out; without an
    embedder nothing is."""
    min_grade: Annotated[int, Field(ge=2, le=5)] | None
    """Least grade, of 1 to 5, of a fact that is kept; a teacher that is a language model gives it,
    in one call a fact. Null asks for none."""
    semantic_leak_threshold: Annotated[float, Field(gt=0, le=1)]
    """Cosine of their embeddings from which a trained question with its answer gives a held-out one
    away; without an embedder none does."""
    max_leak_rate: Share
    """Largest fraction of test questions that may leak into train before the stage fails; those
    that do are left out."""
    max_facts: Count
    """Most facts that are trained, over all pages; null is all of them."""
    max_facts_per_page: Count
    """Most facts that are taken from one page; null is all of them."""
    num_validation: Count
    """Most validation questions; null is all of them."""
    num_same_fact: Count
    """Most test questions about trained facts in held-out wordings; null is all of them."""
    num_held_out: Count
    """Most test questions about pages that are never trained on; null is all of them."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest fraction of replies and facts that may be unusable before the stage fails."""

    @model_validator(mode="after")
    def _shares_leave_room(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise PydanticCustomError(
                "shares",
                "expected validation_share and test_share below 1 in sum, train is the rest",
            )
        return self
