"""A text without personal data and secrets: a placeholder such as `<email>` stands for each.

What documentation writes in their place stays: user@example.com, 192.0.2.1, AKIAIOSFODNN7EXAMPLE,
555-0100, xxxx. The rules find what has a form of its own, and no names or postal addresses.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from stages.core.records import Heading
from stages.crawl.editing import edited
from stages.crawl.page import Page
from stages.crawl.scrub.rules import RULES, Rule
from stages.crawl.settings import Kind, Scrub

__all__ = ["clean", "find", "scrub"]

Span = tuple[int, int, Kind]
"""What is to be replaced, from where to where."""
_NEAR = 2000
"""Characters; a finding that begins so far from the next one does not reach it."""
MAX_ROUNDS = 10
"""How often a text is read; what people write is done after two."""


def scrub(page: Page, cfg: Scrub) -> tuple[Page, Counter[str]]:
    """The page with placeholders in its text and titles, and how many of each kind."""
    text, starts, counts = _replaced(page.text, cfg, [heading.start for heading in page.headings])
    title, _, in_title = _replaced(page.title, cfg)
    counts = counts or in_title  # else the title stands in the text too
    if not counts:
        return page, counts
    headings = tuple(
        Heading(
            start=start,
            level=heading.level,
            title=clean(heading.title, cfg),
            anchor=heading.anchor,
        )
        for heading, start in zip(page.headings, starts, strict=True)
    )
    return replace(page, text=text, headings=headings, title=title), counts


def clean(text: str, cfg: Scrub) -> str:
    """The text with placeholders."""
    return _replaced(text, cfg)[0]


def find(text: str, cfg: Scrub) -> list[Span]:
    """What is to be replaced, in its order and without overlaps; the earlier rule wins."""
    rules = [
        rule for rule in RULES if rule.kind in cfg.kinds and (not rule.hint or rule.hint in text)
    ]
    allowed = [re.compile(pattern) for pattern in cfg.allow]
    spans: list[Span] = []
    for rule in rules:
        starts = [start for start, _, _ in spans]
        found = [_span(rule, match, allowed) for match in rule.pattern.finditer(text)]
        # Those before are apart: only the last that starts before an end can reach it.
        new = [
            span
            for span in found
            if span and not ((at := bisect_left(starts, span[1])) and spans[at - 1][1] > span[0])
        ]
        spans = sorted(spans + new)
    return _with_neighbours(text, spans, rules, allowed)


def _span(rule: Rule, match: re.Match[str], allowed: Sequence[re.Pattern[str]]) -> Span | None:
    group = "found" if "found" in rule.pattern.groupindex else 0
    start, end = match.span(group)
    found = match.group(group)
    if start < 0 or not rule.is_real(found) or any(p.search(found) for p in allowed):
        return None
    return start, end, rule.kind


def _with_neighbours(
    text: str, spans: Sequence[Span], rules: Sequence[Rule], allowed: Sequence[re.Pattern[str]]
) -> list[Span]:
    """Also what stands right behind a finding, which was the end of another word until then: in a
    row of a thousand each reading would find one more.
    """
    row: list[Span] = []
    for place, span in enumerate(spans):
        row.append(span)
        most = spans[place + 1][0] if place + 1 < len(spans) else len(text) + _NEAR
        while True:
            at = row[-1][1]
            # The placeholder that follows is seen by what reaches it.
            rest = f"{text[at:most]}<" if most - at < _NEAR else ""
            where, offset = (rest, at) if rest else (text, 0)
            behind = ((rule, rule.anywhere.match(where, at - offset)) for rule in rules)
            new = (_span(rule, match, allowed) for rule, match in behind if match)
            one = next((one for one in new if one and one[1] + offset <= most), None)
            if one is None:
                break
            row.append((one[0] + offset, one[1] + offset, one[2]))
    return row


def _replaced(
    text: str, cfg: Scrub, places: Sequence[int] = ()
) -> tuple[str, Sequence[int], Counter[str]]:
    """The text, where its byte places are then, and the counts.

    What is left is read again until nothing is found: a placeholder may end a longer number.
    """
    counts: Counter[str] = Counter()
    for _ in range(MAX_ROUNDS):
        spans = find(text, cfg)
        if not spans:
            break
        counts.update(kind for _, _, kind in spans)
        edits = [(start, end, f"<{kind.replace('_', '-')}>") for start, end, kind in spans]
        text, places = edited(text, edits, places)
    return text, places, counts
