"""Extraction beside its peers: real articles with their bodies, and manuals with their sources.

Articles: `--articles DIR` names a folder of scrapinghub/article-extraction-benchmark or of a part
of it (`html/<key>.html.gz` and `ground-truth.json`); scored as its evaluate.py does, on multisets
of four words in a row, after the marks of Markdown are taken from every output in the same way.
A title at its head is taken away
likewise. Without the folder that part is left out.

Manuals: five sites from Debian (`apt-get install python3-doc python-sqlalchemy-doc
python3-sqlalchemy git-doc nodejs-doc python-markdown-doc`), whose packages carry the pages' sources
too; those of the last come from its source distribution, by the command that is printed where it is
missing. extraction_gold/ reads headings, code, signatures and navigation from the sources, never
from the HTML. One site, `HELD_OUT`, was not looked at before its one run.

- headings: on a `#` line of their own, with their level (one shift for a whole page is allowed);
- code: every line byte for byte, one after the other, below one indentation;
- fenced: the same, as the whole of one fence; languages: of those, the named language is kept;
- signatures: whole on one line; anchors: headings whose address is one that the source gives;
- prose: words of paragraphs, by four in a row; leaks: lines that are a line of the site's frame or
  the title of another page, and that neither the page's source nor the docstrings that it brings
  in hold.

Time is CPU time of one process; all extractors take the same pages in turns, parts of ten.
"""

import argparse
import gzip
import importlib.util
import itertools
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trafilatura

from benchmarks import machine
from benchmarks.extraction_gold import HELD_OUT, SOURCES, Gold, Source, dense
from stages.core import fences
from stages.crawl.extract import extract
from stages.crawl.page import Page
from stages.crawl.site import Site

OURS = "ours"
MARKDOWN = "trafilatura markdown"
PEERS = {"resiliparse": "resiliparse", "readability-lxml": "readability"}

Extractor = Callable[[str, str], Page]


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--articles", type=Path, help="a folder of the article benchmark")
    reader.add_argument("--quick", action="store_true", help="a tenth of the pages, one round")
    reader.add_argument("--site", action="append", help="only this manual; may be given again")
    reader.add_argument("--show", type=int, default=0, help="so many of what ours misses, each")
    asked = reader.parse_args()
    print(machine.describe("html-to-markdown", "selectolax", "trafilatura", *installed()))
    missing = sorted(set(PEERS) - set(installed()))
    if missing:
        print(
            f"left out: {', '.join(missing)}: no part of the project: `uv pip install --target "
            f".cache/peers {' '.join(missing)}`, then `PYTHONPATH=.cache/peers make bench …`"
        )
    figures: list[tuple[str, float, float]] = []
    if asked.articles is None:
        print("\narticles: left out: name their folder with --articles DIR")
    else:
        figures += articles(asked.articles, asked.quick)
    figures += manuals(asked.site, asked.quick, asked.show)
    print()
    short = False
    for name, value, target in figures:
        leaks = name.endswith("leaks")
        print(f"figure {name} {value:.4g} target {target:g}")
        short = short or (value > target if leaks else value < target)
    return int(short)


def installed() -> list[str]:
    return [name for name, module in PEERS.items() if importlib.util.find_spec(module)]


# --- the extractors ----------------------------------------------------------------------------


def ours(html: str, url: str) -> Page:
    return extract(html, url, Site.around(url, None))


def from_trafilatura(**options: object) -> Extractor:
    def run(html: str, url: str) -> Page:
        return Page(url, "", trafilatura.extract(html, include_comments=False, **options) or "")

    return run


def resiliparse(html: str, url: str) -> Page:
    from resiliparse.extract.html2text import extract_plain_text

    return Page(url, "", extract_plain_text(html, main_content=True))


def readability(html: str, url: str) -> Page:
    import lxml.html
    from readability import Document

    return Page(url, "", lxml.html.fromstring(Document(html).summary()).text_content())


def extractors(of_manuals: bool) -> dict[str, Extractor]:
    found = {
        OURS: ours,
        MARKDOWN: from_trafilatura(output_format="markdown"),
    }
    if not of_manuals:
        found |= {
            "trafilatura fast": from_trafilatura(fast=True),
            "trafilatura default": from_trafilatura(),
            "trafilatura precision": from_trafilatura(favor_precision=True, include_tables=False),
        }
    if "resiliparse" in installed():
        found["resiliparse"] = resiliparse
    if "readability-lxml" in installed():
        found["readability-lxml"] = readability
    return found


def measure(
    pages: Sequence[tuple[str, str]], run: Mapping[str, Extractor], rounds: int, timed: int
) -> tuple[dict[str, list[Page]], dict[str, list[float]]]:
    """What each extractor gives for the pages (HTML, address), and by round its CPU milliseconds
    a page, of so many of them.
    """
    for name in run:  # imports and tables are no part of a page's cost
        run[name](*pages[0])
    outputs = {name: [call(*page) for page in pages] for name, call in run.items()}
    chosen = pages[:: max(1, len(pages) // timed)]
    parts = [chosen[start : start + 10] for start in range(0, len(chosen), 10)]
    costs: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(rounds):
        spent = dict.fromkeys(run, 0.0)
        for part, (name, call) in itertools.product(parts, run.items()):
            began = time.process_time()
            for page in part:
                call(*page)
            spent[name] += time.process_time() - began
        for name, seconds in spent.items():
            costs[name].append(1000 * seconds / len(chosen))
    return outputs, costs


# --- articles ----------------------------------------------------------------------------------


def articles(folder: Path, quick: bool) -> list[tuple[str, float, float]]:
    truth = json.loads((folder / "ground-truth.json").read_text())
    keys = sorted(truth)[:: 2 if quick else 1]
    pages = []
    for key in keys:
        with gzip.open(folder / "html" / f"{key}.html.gz", "rt", encoding="utf-8") as file:
            pages.append((file.read(), truth[key].get("url") or f"https://example.org/{key}"))
    run = extractors(of_manuals=False)
    outputs, costs = measure(pages, run, 1, 50)
    print(f"\n{len(pages)} articles")
    print(f"{'':<24}{'F1':>8}{'precision':>11}{'recall':>9}{'ms':>8}")
    scores = {}
    for name in run:
        found = zip(outputs[name], pages, strict=True)
        texts = [bare(untitled(page.text, html)) for page, (html, _) in found]
        bodies = [truth[key].get("articleBody", "") for key in keys]
        scores[name] = score(list(zip(bodies, texts, strict=True)))
        per_page = statistics.median(costs[name])
        f1, precision, recall = scores[name]
        print(f"{name:<24}{f1:>8.4f}{precision:>11.4f}{recall:>9.4f}{per_page:>8.1f}")
    return [("article_f1", scores[OURS][0], 0.96)]


def score(pairs: Sequence[tuple[str, str]]) -> tuple[float, float, float]:
    """F1, precision and recall of (true, found) as the benchmark's evaluate.py defines them."""
    precisions, recalls = [], []
    for true, found in pairs:
        one, other = shingles(true), shingles(found)
        hits = (one & other).total()
        more, less = (other - one).total(), (one - other).total()
        if not more and not less:
            precisions.append(1.0)
            recalls.append(1.0)
            continue
        if hits or more:
            precisions.append(hits / (hits + more))
        if hits or less:
            recalls.append(hits / (hits + less))
    precision, recall = statistics.fmean(precisions), statistics.fmean(recalls)
    return 2 * precision * recall / (precision + recall), precision, recall


def shingles(text: str) -> Counter[tuple[str, ...]]:
    words = re.findall(r"\w+", text)
    return Counter(
        tuple(words[n : n + 4]) for n in range(max(1, len(words) - 3)) if words[n : n + 4]
    )


def untitled(text: str, html: str) -> str:
    """Without the page's title at its head, which is no part of a body in this benchmark."""
    head, _, rest = text.lstrip().partition("\n")
    title = re.search(r"<title[^>]*>([^<]*)", html, re.IGNORECASE)
    said = dense(bare(head))
    named = title is not None and said and dense(title.group(1)).startswith(said)
    return rest if named and len(said) > 10 else text


def bare(markdown: str) -> str:
    """Without the marks of Markdown: addresses of links, marks of tables, backslashes."""
    text = re.sub(r"!\[[^\[\]\n]*\]\([^()\s]*\)", "", markdown)
    text = re.sub(r"\]\((?:https?:|mailto:)[^()\s]*(?:\([^()\s]*\)[^()\s]*)*\)", "]", text)
    text = re.sub(r"(?<!\\)[\[\]]", "", text)
    text = re.sub(r"<(https?://[^>]*)>", r"\1", text)
    text = re.sub(r"\\([^\w\s])", r"\1", text)
    text = re.sub(r"(\*\*|__|(?<!\w)[*_]|[*_](?!\w)|`)", "", text)
    return re.sub(r"(?m)^\s*\|?(?:\s*:?-{3,}:?\s*\|)+.*$", "", text)


# --- manuals -----------------------------------------------------------------------------------


@dataclass
class Found:
    """Counts of one extractor on one manual: (found, of)."""

    counts: Counter[str]
    of: Counter[str]

    def share(self, name: str) -> float:
        return self.counts[name] / self.of[name] if self.of[name] else 1.0


def manuals(names: Sequence[str] | None, quick: bool, show: int) -> list[tuple[str, float, float]]:
    figures: list[tuple[str, float, float]] = []
    spent: dict[str, list[float]] = {}
    for source in SOURCES:
        if names and source.name not in names:
            continue
        if not all(folder.is_dir() for folder in (source.html, source.code) if folder):
            print(f"\n{source.name}: left out: apt-get install {source.package}")
            continue
        if source.written is not None and not source.written.is_file():
            print(f"\n{source.name}: left out, for want of {source.written}: {source.written_by}")
            continue
        figures += manual(source, quick, show, spent)
    if spent:
        ratios = [slow / fast for slow, fast in zip(spent[MARKDOWN], spent[OURS], strict=True)]
        figures.append(("docs_speedup", statistics.median(ratios), 8.0))
    return figures


def manual(
    source: Source, quick: bool, show: int, spent: dict[str, list[float]]
) -> list[tuple[str, float, float]]:
    written = [(path, text) for path, text in source.pages() if path.is_file()]
    golds = [source.read(text) for _, text in written[:: 10 if quick else 1]]
    titles = [gold.titles[0].text for gold in golds if gold.titles]
    frame = {dense(line) for line in (*source.navigation, *titles)} - {""}
    written = written[:: 10 if quick else 1]
    pages = [
        (path.read_text(encoding="utf-8", errors="replace"), f"https://docs.example/{path.name}")
        for path, _ in written
    ]
    run = extractors(of_manuals=True)
    outputs, costs = measure(pages, run, 1 if quick else 3, 24)
    for name in run:
        spent.setdefault(name, [0.0] * len(costs[name]))
        spent[name] = [sum(two) for two in zip(spent[name], costs[name], strict=True)]
    held_out = ", held out" if source.name == HELD_OUT else ""
    print(f"\n{source.name}: {len(pages)} pages ({source.generator}{held_out})")
    columns = ("headings", "code", "fenced", "languages", "signatures", "anchors", "prose")
    print(f"{'':<22}" + "".join(f"{column:>11}" for column in columns) + f"{'leaks':>7}{'ms':>8}")
    figures = []
    for name in run:
        found = Found(Counter(), Counter())
        missed: dict[str, list[str]] = {}
        for (path, text), gold, page in zip(written, golds, outputs[name], strict=True):
            judge(page, gold, text, frame, found, missed, path.name)
        per_page = statistics.median(costs[name])
        shares = "".join(f"{found.share(column):>11.4f}" for column in columns)
        print(f"{name:<22}{shares}{found.counts['leaks']:>7}{per_page:>8.1f}")
        if name == OURS:
            for column in ("headings", "code", "signatures", "anchors"):
                figures.append((f"{source.name}_{column}", found.share(column), 0.99))
            figures.append((f"{source.name}_leaks", float(found.counts["leaks"]), 0.0))
            for kind, rows in missed.items():
                for row in rows[:show]:
                    print(f"    {kind}: {row}")
    return figures


def judge(
    page: Page,
    gold: Gold,
    source: str,
    frame: set[str],
    found: Found,
    missed: dict[str, list[str]],
    where: str,
) -> None:
    """Count what of the gold a page holds."""

    def count(kind: str, hit: bool, what: str) -> None:
        found.of[kind] += 1
        found.counts[kind] += hit
        if not hit:
            missed.setdefault(kind, []).append(f"{where}: {what!r}")

    lines = page.text.splitlines()
    fenced = list(fences.find(page.text, 0, len(page.text)))
    headings = _heading_lines(lines, fenced, page.text)
    shift = _shift(gold, headings)
    left = Counter((level + shift, title) for level, title in headings)
    anchors: dict[str, list[str]] = {}
    for heading in page.headings:
        anchors.setdefault(_named(heading.title), []).append(heading.anchor)
    for title in gold.titles:
        key = (title.level, _named(title.text))
        hit = left[key] > 0
        left[key] -= hit
        count("headings", hit, f"{'#' * title.level} {title.text}")
        named = anchors.get(key[1], [])
        anchor = named.pop(0) if named else ""
        fits = re.sub(r"\d+$", "", dense(anchor)) in {re.sub(r"\d+$", "", a) for a in title.anchors}
        generated = bool(re.fullmatch(r"id\d+", anchor))
        if title.anchors:
            count("anchors", bool(anchor) and (fits or generated), f"{title.text}: {anchor}")
    bodies = {}
    for fence in fenced:
        body = _dedented(page.text[fence.body : fence.closing], fence.opening)
        bodies[body] = fence.opening.lstrip(" \t>-*+0123456789.").strip("`~ ")
    stripped = [line.rstrip() for line in lines]
    places: dict[str, list[int]] = {}
    for number, line in enumerate(stripped):
        places.setdefault(re.sub(r"^(?:[ \t]|>(?= |$))*", "", line), []).append(number)
    for code in gold.codes:
        forms = [
            [line.rstrip() for line in form.splitlines()]
            for form in (code.text, code.shown)
            if form
        ]
        if not forms:
            continue
        count("code", any(_stands(form, stripped, places) for form in forms), code.text[:90])
        whole = next((text for form in forms if (text := "\n".join(form)) in bodies), None)
        count("fenced", whole is not None, code.text[:90])
        if code.language and whole is not None:
            said = bodies[whole]
            count("languages", _same_language(code.language, said), f"{code.language}, not {said}")
    flat = map(_flat, lines)
    joined = "\n".join(flat)
    for signature in gold.signatures:
        count("signatures", _flat(signature) in joined, signature)
    words_said = shingles(bare(page.text).casefold())
    for paragraph in gold.paragraphs:
        wanted_words = shingles(paragraph.casefold())
        if len(next(iter(wanted_words), ())) < 4:
            continue  # too short to be told apart
        found.of["prose"] += len(wanted_words)
        found.counts["prose"] += sum(words in words_said for words in wanted_words)
    whole_source = dense("\n".join((source, *gold.brought)))
    own = {dense(title) for title in (*(title.text for title in gold.titles), *gold.brought_titles)}
    hidden = _inside(fenced, page.text)
    named = 0
    for number, line in enumerate(lines):
        text = dense(bare(line)) if len(line) < 400 and number not in hidden else ""
        if text not in frame or text in own or text in whole_source:
            continue
        if "](" in line or line.startswith("#"):
            named += 1
            if named <= gold.num_references:
                continue  # the source refers to that page by its title
        found.counts["leaks"] += 1
        missed.setdefault("leaks", []).append(f"{where}: {line!r}")


def _inside(fenced: Sequence[fences.Fence], text: str) -> set[int]:
    """The lines of code, by number."""
    return {
        number
        for fence in fenced
        for number in range(text.count("\n", 0, fence.start), text.count("\n", 0, fence.end) + 1)
    }


def _heading_lines(
    lines: Sequence[str], fenced: Sequence[fences.Fence], text: str
) -> list[tuple[int, str]]:
    hidden = _inside(fenced, text)
    found = []
    for number, line in enumerate(lines):
        opening = re.match(r"(?:[\s>*+-]|\d+[.)])*(#{1,6}) (.*)", line)
        if opening and number not in hidden:
            found.append((len(opening.group(1)), _named(bare(opening.group(2)))))
    return found


def _named(title: str) -> str:
    """A heading's name without the number that its site gives it."""
    return dense(re.sub(r"^\s*\d+(?:\.\d+)*\.? (?=\S)", "", title))


def _shift(gold: Gold, headings: Sequence[tuple[int, str]]) -> int:
    levels = {_named(title.text): title.level for title in reversed(gold.titles)}
    shifts = Counter(levels[title] - level for level, title in headings if title in levels)
    return shifts.most_common(1)[0][0] if shifts else 0


def _dedented(body: str, opening: str) -> str:
    marks = re.match(r"(?:[ \t>]|[-*+][ \t]|\d{1,9}[.)][ \t])*", opening)
    width = len(marks.group()) if marks else 0
    rows = (line[width:] if not line[:width].strip(" >") else line for line in body.splitlines())
    return "\n".join(row.rstrip() for row in rows).strip("\n")


def _stands(wanted: Sequence[str], lines: Sequence[str], places: Mapping[str, list[int]]) -> bool:
    """Whether the lines stand one after the other, each below the same indentation."""
    for start in places.get(wanted[0].strip(), ()):
        indent = lines[start][: len(lines[start]) - len(wanted[0])]
        if len(lines[start]) < len(wanted[0]) or indent.strip(" >\t|-"):
            continue
        rows = lines[start : start + len(wanted)]
        margin = " " * len(indent)
        fits = len(rows) == len(wanted) and all(
            row == (indent + line).rstrip() or row == (margin + line).rstrip() or row == line
            for row, line in zip(rows, wanted, strict=True)
        )
        if fits:
            return True
    return False


LANGUAGES = {"mjs": "js", "cjs": "js", "javascript": "js", "none": "", "text": "", "default": ""}


def _same_language(named: str, found: str) -> bool:
    one, other = named.casefold(), found.casefold()
    return LANGUAGES.get(one, one) == LANGUAGES.get(other, other)


def _flat(text: str) -> str:
    return (
        re.sub(r"[\s`*\\]|\((?:https?://[^)]*)\)|[\[\]]", "", text)
        .replace("’", "'")
        .replace("->", "→")
        .replace('"', "'")
        .casefold()
    )


if __name__ == "__main__":
    sys.exit(main())
