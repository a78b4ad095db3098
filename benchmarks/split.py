"""Splitting beside LangChain alone and its peers, on Python's manual as the crawl writes it.

The pages are those of Debian's python3-doc (`apt-get install python3-doc`), converted by
stages/crawl/extract.py before any clock runs. All cut at 512 cl100k tokens without overlap.

`langchain` is LangChain as it comes, `RecursiveCharacterTextSplitter.from_tiktoken_encoder`. The
other rows of it count with the function of rs-bpe that ours counts with, once plainly and once
behind a cache without end: what is left between those and ours is the cutting alone, and two
products. semchunk and chonkie count with rs-bpe too, semantic-text-splitter with cl100k of its own
in Rust. tiktoken would fetch cl100k's ranks: here they are read out of semantic-text-splitter's
library, and tiktoken checks their digest.

Every splitter is made anew for each round, since some remember counts; within a round all of them
take the pages in turns, ten parts one after another, so that what else the machine does meets all.
Times are of the processor; none of them uses a second core.

The pipeline needs two products, of 900 tokens with 100 of overlap and of 250 with none: LangChain
splits twice, ours in one pass. Speedups are medians of the rounds' ratios. Ours tells the offsets
and the exact tokens of every chunk besides, and its chunks are compared with LangChain's one by
one.
"""

import argparse
import functools
import importlib.util
import itertools
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from langchain_text_splitters import MarkdownTextSplitter, RecursiveCharacterTextSplitter
from rs_bpe.bpe import openai

from benchmarks import machine
from stages.core import fences, store
from stages.core.records import Document
from stages.crawl.extract import extract
from stages.crawl.site import Site
from stages.split import chunks, cutting, tokens
from stages.split.cutting import Product

DOCS = Path("/usr/share/doc/python3-doc/html")
PEERS = ("semantic-text-splitter", "semchunk", "chonkie", "tiktoken")
ONE = Product(chunk_tokens=512, overlap_tokens=0)
TWO = (
    Product(chunk_tokens=900, overlap_tokens=100),
    Product(chunk_tokens=250, overlap_tokens=0),
)
NUM_PARTS = 10
OURS, PLAIN, COUNTED = "ours, recursive", "langchain", "langchain, our count"
CACHED = "langchain, cached count"
TWO_OURS, TWO_RECORDS = "two products: ours", "two products: records"
TWO_PLAIN, TWO_COUNTED = "two products: langchain", "two products: our count"
TWO_CACHED = "two products: cached"
RANKS = re.compile(rb"(?:[A-Za-z0-9+/=]+ \d+\n)+")
RANKS_KEY = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
"""Name of cl100k's ranks in tiktoken's cache."""

Splitter = Callable[[Document], list[str]]
"""The chunks of a page; for two products, of one after the other."""


@dataclass(frozen=True)
class Found:
    """A splitter's rounds, and what it made in the last one."""

    seconds: list[float]
    texts: list[list[str]]
    """Chunks by page."""


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="a tenth of the pages")
    quick = reader.parse_args().quick
    missing = [name for name in PEERS if not importlib.util.find_spec(name.replace("-", "_"))]
    if missing:
        print(
            f"{', '.join(missing)}: not installed; they are no part of the project: "
            f"`uv pip install --target .cache/peers {' '.join(PEERS)}`, then "
            "`PYTHONPATH=.cache/peers make bench NAME=split`",
            file=sys.stderr,
        )
        return 2
    if not DOCS.exists():
        print(f"{DOCS} is missing: apt-get install python3-doc", file=sys.stderr)
        return 2
    os.environ["TIKTOKEN_CACHE_DIR"] = str(ranks().parent)
    print(machine.describe("langchain-text-splitters", "rs-bpe", *PEERS))
    pages = converted(sorted(DOCS.rglob("*.html"))[:: 10 if quick else 1])
    count = openai.cl100k_base().count
    num_tokens = sum(count(page.text) for page in pages)
    rounds = 3
    print(f"{len(pages)} pages, {num_tokens:,} tokens, {rounds} rounds\n")
    return report(measure(pages, rounds), pages, num_tokens)


def converted(paths: Iterable[Path]) -> list[Document]:
    site = Site.around("https://docs.example/", None)
    pages = []
    for path in paths:
        url = f"https://docs.example/{path.relative_to(DOCS).as_posix()}"
        page = extract(path.read_text(errors="replace"), url, site)
        if page.text.strip():
            pages.append(
                Document(
                    id=url,
                    url=url,
                    title=page.title,
                    text=page.text,
                    source="python3-doc",
                    headings=page.headings,
                )
            )
    return pages


def ranks() -> Path:
    """The file of cl100k's ranks as tiktoken reads them."""
    path = store.cache("benchmarks", "tiktoken", RANKS_KEY)
    if not path.exists():
        found = importlib.util.find_spec("semantic_text_splitter")
        assert found and found.submodule_search_locations
        [library] = Path(found.submodule_search_locations[0]).glob("*.so")
        data = library.read_bytes()
        tables = [RANKS.match(data, start.start()) for start in re.finditer(rb"IQ== 0\n", data)]
        # Others are in it too; cl100k is the one of 100,256.
        whole = next(t.group() for t in tables if t and t.group().count(b"\n") == 100_256)
        with store.replacing(path) as file:
            file.write(whole)
    return path


# --- the splitters -------------------------------------------------------------------------------


def ours(products: Sequence[Product]) -> Splitter:
    counter = tokens.Counter(openai.cl100k_base().count, seamed=True)

    def split(page: Document) -> list[str]:
        ruler = tokens.Ruler(page.text, counter)
        return [
            page.text[start:end]
            for product in products
            for start, end, _ in cutting.Cutter(ruler, product, cutting.TEXT).spans(
                0, len(page.text)
            )
        ]

    return split


def ours_whole(method: chunks.Method, products: Sequence[Product]) -> Splitter:
    """The records that the stage writes, with ids, headings and addresses."""
    counter = tokens.Counter(openai.cl100k_base().count, seamed=True)
    named = {str(place): product for place, product in enumerate(products)}

    def split(page: Document) -> list[str]:
        made = chunks.split(page, named, counter, method)
        return [chunk.text for name in named for chunk in made[name]]

    return split


def plain(products: Sequence[Product]) -> Splitter:
    """LangChain as it comes."""
    splitters = [
        RecursiveCharacterTextSplitter.from_tiktoken_encoder(
            "cl100k_base", chunk_size=product.chunk_tokens, chunk_overlap=product.overlap_tokens
        )
        for product in products
    ]
    return lambda page: [text for one in splitters for text in one.split_text(page.text)]


def langchain(
    products: Sequence[Product],
    kind: type[RecursiveCharacterTextSplitter] = RecursiveCharacterTextSplitter,
    cached: bool = False,
) -> Splitter:
    """LangChain with the count of ours."""
    count = openai.cl100k_base().count
    if cached:
        count = functools.lru_cache(None)(count)
    splitters = [
        kind(
            chunk_size=product.chunk_tokens,
            chunk_overlap=product.overlap_tokens,
            length_function=count,
        )
        for product in products
    ]
    return lambda page: [text for one in splitters for text in one.split_text(page.text)]


def semantic_text_splitter(name: str) -> Splitter:
    import semantic_text_splitter as peer

    splitter = getattr(peer, name).from_tiktoken_model("gpt-4", ONE.chunk_tokens)
    return lambda page: splitter.chunks(page.text)


def semchunk() -> Splitter:
    import semchunk as peer

    # It remembers the counts of every function that it is given, so it gets a new one.
    split = peer.chunkerify(functools.partial(openai.cl100k_base().count), ONE.chunk_tokens)
    return lambda page: split(page.text)


def chonkie() -> Splitter:
    import chonkie as peer

    count = openai.cl100k_base().count
    splitter = peer.RecursiveChunker(lambda text: count(text), chunk_size=ONE.chunk_tokens)
    return lambda page: [chunk.text for chunk in splitter.chunk(page.text)]


SPLITTERS: dict[str, Callable[[], Splitter]] = {
    OURS: lambda: ours([ONE]),
    "ours, markdown, records": lambda: ours_whole("markdown", [ONE]),
    PLAIN: lambda: plain([ONE]),
    COUNTED: lambda: langchain([ONE]),
    CACHED: lambda: langchain([ONE], cached=True),
    "langchain, markdown": lambda: langchain([ONE], MarkdownTextSplitter),
    "semantic-text-splitter": lambda: semantic_text_splitter("TextSplitter"),
    "semantic-…, markdown": lambda: semantic_text_splitter("MarkdownSplitter"),
    "semchunk": semchunk,
    "chonkie": chonkie,
    TWO_OURS: lambda: ours(TWO),
    TWO_RECORDS: lambda: ours_whole("recursive", TWO),
    TWO_PLAIN: lambda: plain(TWO),
    TWO_COUNTED: lambda: langchain(TWO),
    TWO_CACHED: lambda: langchain(TWO, cached=True),
}


def measure(pages: Sequence[Document], rounds: int) -> dict[str, Found]:
    found = {name: Found([], []) for name in SPLITTERS}
    parts = [pages[start::NUM_PARTS] for start in range(NUM_PARTS)]
    for _ in range(rounds):
        made = {name: make() for name, make in SPLITTERS.items()}
        spent = dict.fromkeys(SPLITTERS, 0.0)
        for row in found.values():
            row.texts.clear()
        for part, (name, split) in itertools.product(parts, made.items()):
            began = time.process_time()
            texts = [split(page) for page in part]
            spent[name] += time.process_time() - began
            found[name].texts.extend(texts)
        for name, row in found.items():
            row.seconds.append(spent[name])
    return found


# --- what they made ------------------------------------------------------------------------------


def report(found: dict[str, Found], pages: Sequence[Document], num_tokens: int) -> int:
    """The table and the figures; 1 where one falls short."""
    print(f"{'':<26}{'Mtok/s':>8}{'seconds':>9}{'chunks':>8}{'over':>6}{'odd':>8}{'headed':>8}")
    for name, row in found.items():
        texts = list(itertools.chain(*row.texts))
        seconds = statistics.median(row.seconds)
        over = "" if name.startswith("two") else num_over(texts)
        print(
            f"{name:<26}{num_tokens / seconds / 1e6:>8.2f}{seconds:>9.2f}{len(texts):>8}{over:>6}"
            f"{share(texts, is_odd):>8.2%}{share(texts, begins_with_heading):>8.1%}"
        )
    print(
        "over: chunks above the limit; odd: with an odd number of fence lines; "
        "headed: begin with a heading\n"
    )
    identical = proof(found)
    markdown = list(itertools.chain(*found["ours, markdown, records"].texts))
    print(f"\nodd as ours, markdown, is shown to a model: {share(shown(pages), is_odd):.2%}")
    for name, mine, others in (
        ("one product", OURS, (PLAIN, COUNTED, CACHED)),
        ("two products", TWO_OURS, (TWO_PLAIN, TWO_COUNTED, TWO_CACHED)),
        ("two, as whole records", TWO_RECORDS, (TWO_PLAIN, TWO_COUNTED, TWO_CACHED)),
    ):
        times = [ratio(found, theirs, mine) for theirs in others]
        print(
            f"{name}: {times[0]:.2f} times as fast as LangChain; {times[1]:.2f} times where it "
            f"counts as ours does, {times[2]:.2f} with a cache before that"
        )
    speedup, twice = ratio(found, PLAIN, OURS), ratio(found, TWO_PLAIN, TWO_OURS)
    over = num_over([*itertools.chain(*found[OURS].texts), *markdown])
    odd = 100 * share(markdown, is_odd)
    print(f"\nfigure identical_pages {identical:.4g} target 1")
    print(f"figure speedup {speedup:.4g} target 3")
    print(f"figure speedup_two_products {twice:.4g} target 3")
    print(f"figure over_limit {over} target 0")
    print(f"figure odd_fences_percent {odd:.4g} target 1")
    return int(identical < 1 or min(speedup, twice) < 3 or over > 0 or odd >= 1)


def shown(pages: Iterable[Document]) -> list[str]:
    """The chunks of `markdown` as prompts show them."""
    counter = tokens.Counter(openai.cl100k_base().count, seamed=True)
    made = (chunks.split(page, {"one": ONE}, counter, "markdown")["one"] for page in pages)
    return [fences.mend(chunk.text, chunk.fence) for chunk in itertools.chain(*made)]


def num_over(texts: Iterable[str]) -> int:
    count = openai.cl100k_base().count
    return sum(count(text) > ONE.chunk_tokens for text in texts)


def proof(found: dict[str, Found]) -> float:
    """The share of pages whose chunks are LangChain's, each and in order, in all products."""
    compared = []
    for ours_name, theirs_name in (
        (OURS, PLAIN),
        (OURS, COUNTED),
        (TWO_OURS, TWO_PLAIN),
        (TWO_RECORDS, TWO_PLAIN),
    ):
        pairs = list(zip(found[ours_name].texts, found[theirs_name].texts, strict=True))
        same = [mine == theirs for mine, theirs in pairs]
        print(
            f"{ours_name} = {theirs_name}: {sum(len(theirs) for _, theirs in pairs):,} chunks, "
            f"equal on {sum(same)} of {len(same)} pages"
        )
        compared += same
    return statistics.fmean(compared)


def ratio(found: dict[str, Found], theirs: str, mine: str) -> float:
    rounds = zip(found[theirs].seconds, found[mine].seconds, strict=True)
    return statistics.median(slow / fast for slow, fast in rounds)


def share(texts: Iterable[str], holds: Callable[[str], bool]) -> float:
    return statistics.fmean(map(holds, texts))


def is_odd(text: str) -> bool:
    return sum(line.lstrip(" >-").startswith("```") for line in text.splitlines()) % 2 == 1


def begins_with_heading(text: str) -> bool:
    marks, _, _ = text.partition(" ")
    return 0 < len(marks) <= 6 and not marks.strip("#")


if __name__ == "__main__":
    sys.exit(main())
