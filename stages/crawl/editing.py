"""A text with other words in some places, and where its byte places are then."""

from bisect import bisect_left
from collections.abc import Sequence


def edited(
    text: str, edits: Sequence[tuple[int, int, str]], places: Sequence[int]
) -> tuple[str, list[int]]:
    """Each edit, in order and apart from the others, is a span of characters and what stands for
    it. A place inside of a span comes to lie at its end, one at its start stays there.
    """
    parts, last, size, shift = [], 0, 0, 0
    starts: list[int] = []  # bytes of the old text
    ends: list[int] = []  # bytes of the new one
    shifts: list[int] = []
    for start, end, words in edits:
        parts += [text[last:start], words]
        size += len(text[last:start].encode())
        width = len(text[start:end].encode())
        starts.append(size)
        size += width
        shift += len(words.encode()) - width
        shifts.append(shift)
        ends.append(size + shift)
        last = end
    before = [bisect_left(starts, place) - 1 for place in places]
    moved = [
        place if at < 0 else max(place + shifts[at], ends[at])
        for place, at in zip(places, before, strict=True)
    ]
    return "".join([*parts, text[last:]]), moved
