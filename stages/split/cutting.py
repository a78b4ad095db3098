"""Where a text is cut: LangChain's recursive splitting, done on offsets and sums of tokens.

`RecursiveCharacterTextSplitter` counts every piece about three times and copies it as often. Here
the same pieces are joined by the same rule, but a piece is counted once and a chunk is two offsets.
"""

import bisect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages.core import config
from stages.split.tokens import Pieces, Ruler

Separators = Sequence[re.Pattern[str] | None]
"""Where to cut, the best first; None is between any two characters and comes last."""

TEXT: Separators = (*(re.compile(blank) for blank in ("\n\n", "\n", " ")), None)
"""LangChain's own: at paragraphs, lines, words, characters."""


class Product(config.Base):
    """The length of one kind of chunk."""

    chunk_tokens: Annotated[int, Field(ge=8)]
    """Longest chunk, in tokens of the configured model's tokenizer."""
    overlap_tokens: Annotated[int, Field(ge=0)]
    """Most tokens of a chunk's end that the next chunk repeats at its start."""

    @model_validator(mode="after")
    def _overlap_is_shorter(self) -> "Product":
        if self.overlap_tokens >= self.chunk_tokens:
            raise PydanticCustomError(
                "overlap", "expected an overlap_tokens below chunk_tokens, so that a chunk advances"
            )
        return self


class Span(NamedTuple):
    """A chunk's place, in characters."""

    start: int
    end: int
    num_tokens: int


Blocks = Callable[[int, int], Sequence[tuple[int, int]]]
"""What stays whole between two offsets: spans that neither overlap nor hold one another, in order;
none has more tokens than a chunk may have."""


def nothing(first: int, last: int) -> Sequence[tuple[int, int]]:
    """Keeps nothing whole."""
    return ()


@dataclass(frozen=True)
class Cutter:
    """Cuts a text into chunks of one length."""

    ruler: Ruler
    product: Product
    separators: Separators
    whole: Blocks = nothing

    def spans(self, first: int, last: int) -> Iterator[Span]:
        """The chunks between two offsets, by start; none begins or ends with a blank.

        They hold every other character. Each is within the limit, unless it is one character.
        """
        chunks = (chunk for run in self._runs(first, last, 0) for chunk in self._joined(*run))
        found = [(span, place) for chunk in chunks for place, span in enumerate(chunk)]
        reached = 0
        for span, place in sorted(found):
            # What is left of a chunk cut again may stand in an overlapping one.
            if place == 0 or span.end > reached:
                yield span
            reached = max(reached, span.end)

    def _runs(self, first: int, last: int, level: int) -> Iterator[tuple[Pieces, int, int]]:
        """Neighbouring pieces that are to be joined, as first:last of the pieces."""
        bounds, level = self._bounds(first, last, level)
        pieces = self.ruler.measure(bounds)
        begun = 0
        limit = self.product.chunk_tokens
        for place in [place for place, n in enumerate(pieces.counts) if n >= limit]:
            if place > begun:
                yield pieces, begun, place
            if level < len(self.separators):
                yield from self._runs(bounds[place], bounds[place + 1], level)
            else:
                yield pieces, place, place + 1
            begun = place + 1
        if begun < len(pieces.counts):
            yield pieces, begun, len(pieces.counts)

    def _bounds(self, first: int, last: int, level: int) -> tuple[Sequence[int], int]:
        """Where to cut by the first separator that is there, and the level after it."""
        text = self.ruler.text[first:last]
        for place in range(level, len(self.separators)):
            separator = self.separators[place]
            if separator is None:
                return self._outside_blocks(range(first, last + 1)), len(self.separators)
            starts = list(map(re.Match.start, separator.finditer(text)))
            if starts:
                if first:
                    starts = [first + start for start in starts]
                if starts[0] > first:
                    starts.insert(0, first)
                return self._outside_blocks([*starts, last]), place + 1
        return (first, last), len(self.separators)

    def _outside_blocks(self, bounds: Sequence[int]) -> Sequence[int]:
        blocks = self.whole(bounds[0], bounds[-1])
        if not blocks:
            return bounds
        kept: list[int] = []
        begun = 0
        for start, end in blocks:
            stop = bisect.bisect_right(bounds, start, begun)
            kept += bounds[begun:stop]
            begun = bisect.bisect_left(bounds, end, stop)
        return [*kept, *bounds[begun:]]

    def _joined(self, pieces: Pieces, first: int, end: int) -> Iterator[Iterable[Span]]:
        """LangChain's `_merge_splits`: as many pieces as fit, and again those of the overlap."""
        limit, overlap = self.product.chunk_tokens, self.product.overlap_tokens
        sums = pieces.sums
        last = first
        while last < end:
            last = bisect.bisect_right(sums, sums[first] + limit, first, end + 1) - 1
            last = max(last, first + 1)
            yield self._within_limit(pieces, first, last)
            if last < end:
                # The next begins so that it repeats no more than the overlap and has room for one.
                room = min(overlap, max(limit - pieces.counts[last], 0))
                first = bisect.bisect_left(sums, sums[last] - room, first, last)

    def _within_limit(self, pieces: Pieces, first: int, last: int) -> Iterator[Span]:
        """The pieces as one chunk, or as several: joined they can have more tokens than summed."""
        while True:
            start, end = self._stripped(pieces.bounds[first], pieces.bounds[last])
            if start == end:
                return
            num_tokens = self.ruler.count_joined(pieces, first, last, start, end)
            if num_tokens <= self.product.chunk_tokens or end - start == 1:
                yield Span(start, end, num_tokens)
                return
            if last == first + 1:
                pieces = self.ruler.measure(range(start, end + 1))
                first, last = 0, end - start
            stop = self._fitting(pieces.bounds, first, last)
            start, end = self._stripped(pieces.bounds[first], pieces.bounds[stop])
            if start < end:
                yield Span(start, end, self.ruler.count(start, end))
            first = stop

    def _fitting(self, bounds: Sequence[int], first: int, last: int) -> int:
        """Up to where pieces fit together: at least one and not all."""

        def tokens(stop: int) -> int:
            return self.ruler.count(*self._stripped(bounds[first], bounds[stop]))

        limit = self.product.chunk_tokens
        stop = first + max(bisect.bisect_right(range(first + 1, last), limit, key=tokens), 1)
        while stop > first + 1 and tokens(stop) > limit:  # a longer text can have fewer tokens
            stop -= 1
        return stop

    def _stripped(self, start: int, end: int) -> tuple[int, int]:
        """The span without the blanks around; of blanks alone, the empty span."""
        text = self.ruler.text[start:end]
        first = start + len(text) - len(text.lstrip())
        return first, max(first, start + len(text.rstrip()))
