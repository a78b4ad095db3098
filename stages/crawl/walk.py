"""The way through a site: level by level, the same whatever the speed of its answers.

A level is every address that the pages of the level before lead to, sorted, so that neither the
order of answers nor the number of connections decides what is asked for. The way is not written
down anywhere: a crawl that was killed walks it again from the start page, and the page store
answers in place of the site where it can.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from selectolax.lexbor import LexborHTMLParser

from stages.crawl import lists, screen, traps
from stages.crawl.asking import Asker
from stages.crawl.pages import Answer, Answered, Body, Crawl, Role
from stages.crawl.site import Filter, Site, feeds_of, may_be_list, may_be_page, twins

MAX_REDIRECTS = 10
"""Longest chain of redirects that is followed."""
MAX_LISTS = 500
"""Most sitemaps and feeds that are read."""
MAX_NESTED_LISTS = 4
"""Deepest index of indexes that is followed."""


@dataclass(frozen=True)
class Reach:
    """How far a crawl goes."""

    max_pages: int
    max_depth: int
    max_alike: int
    """Addresses that differ in their date or query only."""
    external: bool
    """Whether pages outside of the site are read that its pages link to; their links are not."""
    kinds: frozenset[str]
    """Of the lists that are read: sitemap, llms_txt, feed."""


class Keeper:
    """Keeps answers in groups: all that came while the group before went to the disk."""

    def __init__(self, crawl: Crawl) -> None:
        self._crawl = crawl
        self._waiting: list[tuple[Answer, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def keep(self, answer: Answer) -> None:
        """On the disk when this returns."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((answer, kept))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await kept

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._crawl.keep, *(answer for answer, _ in group))
            except BaseException as error:
                for _, kept in group:
                    kept.set_exception(error)
                raise
            for _, kept in group:
                kept.set_result(None)
        self._writing = None


class Walk:
    """One crawl of one site."""

    def __init__(
        self,
        *,
        site: Site,
        wanted: Filter,
        reach: Reach,
        crawl: Crawl,
        asker: Asker,
        keeper: Keeper,
        concurrent: int,
        tell: Callable[[Answered, int], None],
    ) -> None:
        self._site = site
        self._wanted = wanted
        self._reach = reach
        self._crawl = crawl
        self._asker = asker
        self._keeper = keeper
        self._concurrent = concurrent
        self._tell = tell
        self._seen: dict[str, str] = {}  # address: the page that led there
        self._found: dict[str, str] = {}  # the same, for what pages link to
        self._redirected: dict[str, str] = {}  # the same, for the rest of this level
        self._markdown: dict[str, str] = {}  # the same, for what lists name beside the page itself
        self._lists: dict[str, str] = {}  # the same, for lists that are still to be read
        self._left: dict[str, str] = {}  # address: the limit that leaves it out
        self._alike: Counter[str] = Counter()
        self._num_lists = 0

    @property
    def left(self) -> dict[str, int]:
        """How many known addresses were left out, by the limit."""
        return dict(sorted(Counter(self._left.values()).items()))

    async def go(self, start: str) -> None:
        level = {start: ""}
        for depth in range(self._reach.max_depth + 1):
            await self._visit_all(level)
            if depth == 0:
                await self._read_lists(start)
            limit = "" if depth < self._reach.max_depth else "max_depth"
            level = self._next_level(limit)
            if not level and self._markdown:  # last, when all pages are seen
                named, self._markdown = self._markdown, {}
                self._found |= {url: named[url] for url in named if not self._repeats(url)}
                level = self._next_level(limit)
            if not level:
                break

    def _next_level(self, limit: str) -> dict[str, str]:
        """Of what pages link to, what is asked for next; the limits count what they leave out."""
        level: dict[str, str] = {}
        for url in sorted(self._found.keys() - self._seen.keys() - self._left.keys()):
            why = traps.fault(url) or limit or self._full(url, len(level))
            if why:
                self._left[url] = why
            else:
                level[url] = self._found[url]
        return level

    def _full(self, url: str, more: int) -> str:
        if len(self._seen) - self._num_lists + more >= self._reach.max_pages:
            return "max_pages"
        key = traps.alike(url)
        if key:
            self._alike[key] += 1
        return "max_alike" if key and self._alike[key] > self._reach.max_alike else ""

    async def _visit_all(self, level: dict[str, str], role: Role = "page") -> None:
        """Visit a level, then where its redirects lead, which belongs to it."""
        for _ in range(MAX_REDIRECTS + 1):
            self._seen |= level
            self._redirected = {}
            queue: Iterator[str] = iter(sorted(level))
            await asyncio.gather(*(self._work(queue, role) for _ in range(self._concurrent)))
            level = {}
            for url in sorted(self._redirected.keys() - self._seen.keys()):
                why = traps.fault(url) or (self._full(url, len(level)) if role == "page" else "")
                if why:
                    self._left[url] = why
                else:
                    level[url] = self._redirected[url]
            if not level:
                return
            self._num_lists += len(level) if role == "list" else 0
        self._left |= dict.fromkeys(level, "redirects")

    async def _work(self, queue: Iterator[str], role: Role) -> None:
        for url in queue:
            await self._visit(url, role)

    async def _visit(self, url: str, role: Role) -> None:
        """Learn what an address answers, from the store or by asking; note where it leads."""
        body: Body | None = None
        answered = self._crawl.answered(url)
        if answered is None:
            answer = self._placed(await self._asker.ask(url, self._seen[url], role))
            await self._keeper.keep(answer)
            if answer.body is not None:
                body = Body(answer.media_type, answer.body)
            answered = self._crawl.answered(url)
            assert answered is not None
        if answered.reason == "redirect":
            target = answered.detail
            if role == "list" and not may_be_list(target):
                return  # a host that sends whoever asks for what is missing to a page
            self._redirected[target] = min(self._redirected.get(target, url), url)
        elif answered.digest:
            body = body or self._crawl.body(answered.digest)
            assert body is not None
            self._note_addresses(url, body, role)
        if role == "page":
            self._tell(answered, len(self._seen) - self._num_lists)

    def _placed(self, answer: Answer) -> Answer:
        """A redirect with the address that it leads to in the crawl's spelling, or out of it.

        What another site fails to give says nothing against ours.
        """
        if answer.reason != "redirect":
            other = answer.reason and self._site.resolve(answer.url, answer.url) is None
            return replace(answer, reason="external", detail=answer.reason) if other else answer
        target = self._resolve(answer.detail, answer.url)
        if answer.role == "list":
            target = self._site.resolve_on_host(answer.detail, answer.url)
        if target is None or target == answer.url:
            # To itself: in the other of http and https, or to whom it has given a session.
            return replace(answer, reason="outside")
        return replace(answer, detail=target)

    def _resolve(self, href: str, base: str) -> str | None:
        """The address that a link leads to where it is wanted."""
        inside = self._site.resolve(href, base)
        if inside is not None:
            return inside if self._wanted.keeps(inside) else None
        out = self._site.resolve_out(href, base) if self._reach.external else None
        return out if out is not None and not self._wanted.excludes(out) else None

    # --- where an answer leads -----------------------------------------------------------------

    def _note_addresses(self, url: str, body: Body, role: Role) -> None:
        if role == "list":
            named = lists.read(body.data, url)
            for page in named.pages:
                inside = self._site.resolve(page, url)
                if inside is not None and self._wanted.keeps(inside) and may_be_page(inside):
                    self._note(
                        self._markdown if inside.endswith(".md") else self._found, inside, url
                    )
            for inner in named.lists:
                self._note_list(inner, url)
            return
        if self._site.resolve(url, url) is None:
            return  # one hop out
        html = body.text()
        if screen.fault(html):
            return  # which the stage counts
        tree = LexborHTMLParser(html)
        for href in self._site.hrefs(tree, url):
            link = self._resolve(*href)
            if link is not None and may_be_page(link) and not self._repeats(link):
                self._note(self._found, link, url)
        if not self._seen[url] and "feed" in self._reach.kinds:
            for feed in feeds_of(tree, url):
                self._note_list(feed, url)

    def _repeats(self, url: str) -> bool:
        """Is it the Markdown of a page that is seen already?"""
        return url.endswith(".md") and any(twin in self._seen for twin in twins(url))

    @staticmethod
    def _note(found: dict[str, str], url: str, by: str) -> None:
        found[url] = min(found.get(url, by), by)

    def _note_list(self, url: str, by: str) -> None:
        inside = self._site.resolve_on_host(url, by)
        if inside is not None:
            self._note(self._lists, inside, by)

    async def _read_lists(self, start: str) -> None:
        """Read what names the site's pages, and the lists that it names in turn."""
        for url in await self._usual_lists(start):
            self._note_list(url, start)
        for _ in range(MAX_NESTED_LISTS):
            new = sorted(self._lists.keys() - self._seen.keys())
            room = max(MAX_LISTS - self._num_lists, 0)
            self._left |= dict.fromkeys(new[room:], "max_lists")
            level = {url: self._lists[url] for url in new[:room] if url not in self._left}
            if not level:
                break
            self._num_lists += len(level)
            await self._visit_all(level, "list")

    async def _usual_lists(self, start: str) -> list[str]:
        origin, folder = self._site.origin, self._site.folder
        found = []
        if "sitemap" in self._reach.kinds:
            found = list((await self._asker.robots(start))[0].sitemaps)
            found = found or [f"{origin}/sitemap.xml", f"{origin}{folder}sitemap.xml"]
        if "llms_txt" in self._reach.kinds:
            found += [f"{origin}/llms.txt", f"{origin}{folder}llms.txt"]
        return found
