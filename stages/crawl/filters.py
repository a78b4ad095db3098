"""The pages of one source to those worth keeping, and a counted reason for every other one.

Everything here is pure, and by page: the order of pages changes nothing, and an edit of one page
changes no other, but where it changes what counts as repeated.
"""

import bisect
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stages.core import fences, shingles
from stages.core.records import Heading
from stages.crawl.editing import edited
from stages.crawl.page import Page
from stages.crawl.settings import Config

Pages = Mapping[str, Page]
"""Pages by address."""

MIN_REPEATS = 5
"""A line on fewer pages is never boilerplate, whatever their share."""
MIN_SITES_TITLES = 3
MIN_PROSE_CHARS = 200
"""Shorter texts do not tell their language."""
SURE = 0.9
"""Probability from which another language is believed."""
SHORT_CHARS = 1200
"""An error page says little; a longer page is one about errors."""
SEED = 0
_DIGEST_BYTES = 8


# --- what is repeated --------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """What the pages of a site share, and none of them is about."""

    endings: frozenset[str]
    """The name of the site, which most titles end in."""
    lines: frozenset[bytes]
    """Digests of the lines that are repeated."""


def frame(pages: Iterable[Page], share: float | None) -> Frame:
    """Of a site: an ending of at least half of the titles, and the lines that at least this share
    of the pages repeat; None: no lines.
    """
    endings, digests = Counter[str](), bytearray()
    for page in pages:
        endings[_ending(page.title)] += 1
        if share is not None:
            digests += b"".join({_digest(said) for _, _, said in lines(page)})
    number = endings.total()
    most = {end for end, n in endings.items() if end and n >= MIN_SITES_TITLES and 2 * n >= number}
    repeated = _frequent(digests, max(MIN_REPEATS, (share or 1) * number))
    return Frame(frozenset(most), frozenset(repeated))


def _digest(line: str) -> bytes:
    """So short that the lines of ten thousand pages have room in memory."""
    return hashlib.blake2b(line.encode(), digest_size=_DIGEST_BYTES).digest()


def _frequent(digests: bytearray, enough: float) -> list[bytes]:
    values = np.frombuffer(digests, f"V{_DIGEST_BYTES}").view(np.uint64)
    found, counts = np.unique(values, return_counts=True)
    return [value.tobytes() for value in found[counts >= enough]]


def unframed(page: Page, frame: Frame) -> Page:
    """The page without what its site repeats.

    Headings, code, tables and what leads to something below it stay, and so does a page that is
    made of nothing else.
    """
    ending = _ending(page.title)
    if ending in frame.endings:
        page = replace(page, title=page.title.removesuffix(ending))
    return _without(page, frame.lines) if frame.lines else page


def _ending(title: str) -> str:
    """The last part of a title with the mark before it."""
    last = max(title.rfind(mark) for mark in _MARKS)
    for found in _MARKED.finditer(title):
        if found.end() > last:
            return title[found.start() :]
    return ""


_MARKS = "|·•»–—"
"""Of several, the last one; a hyphen or colons may stand in a site's name too."""
_MARKED = re.compile(rf"(?<=\S)\s+(?:[{_MARKS}-]|::)(?=\s+\S)")


def lines(page: Page) -> Iterator[tuple[int, int, str]]:
    """The lines that may be boilerplate: where each one begins and ends, and what it says."""
    code = [(fence.start, fence.end) for fence in fences.find(page.text, 0, len(page.text))]
    starts = [start for start, _ in code]
    begin = 0
    for line in page.text.splitlines(keepends=True):
        end = begin + len(line)
        place = bisect.bisect_right(starts, begin) - 1
        inside = place >= 0 and begin < code[place][1]
        said = line.strip()
        plain = said.lstrip(" >*+-0123456789.)")
        is_mark = plain.startswith(("#", "|", "```", "~~~", "$$")) or line.startswith("    ")
        if plain and not inside and not is_mark and not said.rstrip("*_ ").endswith(":"):
            yield begin, end, said
        begin = end


def _without(page: Page, repeated: frozenset[bytes]) -> Page:
    spans = [(begin, end) for begin, end, said in lines(page) if _digest(said) in repeated]
    if not spans:
        return page
    blanks = (re.compile(r"[ \t]*\n").match(page.text, end) for _, end in spans)
    edits = [
        (begin, blank.end() if blank else end, "")  # one of the empty lines around it
        for (begin, end), blank in zip(spans, blanks, strict=True)
    ]
    text, starts = edited(page.text, edits, [heading.start for heading in page.headings])
    text = text.rstrip("\n")
    if not re.search(r"(?m)^[^\S\n]*[^\s#]", text):
        return page
    headings = tuple(
        Heading(start=start, level=heading.level, title=heading.title, anchor=heading.anchor)
        for heading, start in zip(page.headings, starts, strict=True)
    )
    return replace(page, text=text, headings=headings)


# --- pages by themselves -----------------------------------------------------------------------


def flaw(page: Page, cfg: Config, of_site: bool, of_prose: bool) -> tuple[str, str] | None:
    """The first reason against a page by itself, with its detail.

    Only a site has pages of errors, and only prose (no code, no row of a table) a language.
    """
    kind = error(page) if of_site else ""
    if kind:
        return "error_page", kind
    if len(page.text) < cfg.min_chars and not page.pairs:  # an answer may be short
        return "too_short", f"{len(page.text)} characters"
    return foreign(page, cfg) if of_prose else None


_ERRORS: dict[str, re.Pattern[str]] = {
    "not found": re.compile(
        r"(?:error |http )?404\b|.{0,40}\b(?:page|file|document|url|site)\b.{0,20}\b(?:not (?:be )?"
        r"found|do(?:es)?(?: not|n['’]t) exist|no longer (?:exists|available)|is (?:gone|missing))"
        r"|not found$|(?:oops|uh[- ]?oh|sorry)\b.{0,60}(?:\bnot find|n['’]t find"
        r"|\b(?:missing|gone|lost))"
        r"|seite nicht gefunden|page (?:introuvable|non trouvée)|página no encontrada",
        re.IGNORECASE,
    ),
    "refused or failed": re.compile(
        r"(?:error |http )?(?:401|403|410|429|50[0234])\b(?!\.\d)|(?:access|permission) denied"
        r"|forbidden$|unauthori[sz]ed$|internal server error|bad gateway|service (?:temporarily )?"
        r"unavailable|(?:gateway|request) time-?out|too many requests"
        r"|(?:down for|under|scheduled) maintenance|we['’]ll be (?:right )?back",
        re.IGNORECASE,
    ),
    "challenge": re.compile(
        r"just a moment|attention required|(?:please )?(?:verify|confirm|prove)\b.{0,30}\b(?:human"
        r"|not a (?:ro)?bot)|are you (?:a )?(?:human|(?:ro)?bot)|checking (?:your browser|if)\b"
        r"|(?:please )?(?:enable|turn on)\b.{0,30}\b(?:javascript|cookies)|ddos protection|captcha"
        r"|security check|you need to enable javascript|this (?:site|app|page) requires javascript",
        re.IGNORECASE,
    ),
    "login": re.compile(
        r"(?:please )?(?:log|sign)[ -]?in(?: (?:to|with|or|required|page)\b.*)?$"
        r"|login(?: required)?$"
        r"|(?:please |you (?:must|need to) )(?:be )?(?:log(?:ged)?|sign(?:ed)?)[ -]?in\b"
        r"|authentication required|single sign-on|(?:subscribe|register|create an account) to "
        r"(?:continue|read|view)|(?:this content is )?(?:for|only available to) "
        r"(?:subscribers|members)",
        re.IGNORECASE,
    ),
    "cookies": re.compile(
        r"(?:we|this (?:web ?)?site)(?: and our partners)? (?:use|value|care about)s?\b.{0,40}\b"
        r"(?:cookies|privacy)|(?:accept|manage|your) (?:all )?cookies?\b.{0,30}$|cookie (?:consent"
        r"|settings|notice|preferences)$|before you continue",
        re.IGNORECASE,
    ),
}


def error(page: Page) -> str:
    """Which page without content it is: a soft 404, a wall, a challenge; empty for a real one."""
    if len(page.text) > SHORT_CHARS:
        return ""
    body = [re.sub(r"[*_`#>\[\]]|\(https?:[^)]*\)", "", row).strip() for row in _prose(page)]
    said = [row for row in body if row]
    first = [page.title, *(heading.title for heading in page.headings[:1])]
    num_words = len(re.findall(r"\w+", " ".join(said)))
    for kind, pattern in _ERRORS.items():
        if any(pattern.match(title.strip()) for title in first if title):
            # A page about this error explains it, with code or at length.
            if num_words <= 120 and "```" not in page.text:
                return kind
        elif num_words <= 40 and any(pattern.match(row) for row in said[:3]):
            return kind
    return ""


def foreign(page: Page, cfg: Config) -> tuple[str, str] | None:
    """Why a page is in none of the languages that are asked for."""
    prose = "\n".join(_prose(page))
    if not cfg.languages or len(prose) < MIN_PROSE_CHARS:
        return None
    language, probability = _identifier().classify(prose)
    if language in cfg.languages or probability < SURE:
        return None
    return "wrong_language", str(language)


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]  # .5 s

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _prose(page: Page) -> list[str]:
    """The lines outside of code."""
    parts, last = [], 0
    for fence in fences.find(page.text, 0, len(page.text)):
        parts.append(page.text[last : fence.start])
        last = fence.end
    return "\n".join([*parts, page.text[last:]]).splitlines()


# --- pages beside each other -------------------------------------------------------------------


def duplicates(pages: Pages) -> dict[str, str]:
    """Addresses whose page stands at another one too, with that one: the shortest of them.

    Equal text makes a duplicate. So does naming another page as canonical, but only when half of
    the lines are there: sites exist whose every page names the home page.
    """
    canonical: dict[str, str | None] = {}
    texts: dict[str, bytes] = {}
    for url, page in pages.items():
        canonical[url], texts[url] = page.canonical, hashlib.sha256(page.text.encode()).digest()
    kept: dict[bytes, str] = {}
    gone: dict[str, str] = {}
    for url in sorted(pages, key=lambda url: (canonical[url] != url, len(url), url)):
        first = kept.setdefault(texts[url], url)
        if first != url:
            gone[url] = first
    for url, other in canonical.items():
        if url in gone or other is None or other == url or other not in pages or other in gone:
            continue
        if canonical[other] not in (None, other):
            continue  # a chain, or two pages that name each other
        lines = {line for line in pages[url].text.splitlines() if line.strip()}
        if 2 * len(lines & set(pages[other].text.splitlines())) >= len(lines):
            gone[url] = other
    return gone


def near_duplicates(pages: Pages, threshold: float) -> dict[str, str]:
    """Addresses whose page is nearly that of an earlier address, with the earliest such one.

    Earlier is the shorter address, then that before it in the alphabet. Whether the other one is
    kept itself plays no part: so an edit touches the pages that are like the edited one and no
    others.
    """
    urls = sorted(pages, key=lambda url: (len(url), url))
    alike = shingles.earliest(len(urls), lambda place: pages[urls[place]].text, SEED, threshold)
    return {urls[second]: urls[first] for first, second in alike}
