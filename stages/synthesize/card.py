"""What a data set holds and where it comes from, as a dataset card of the Hugging Face hub."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, get_args
from urllib.parse import quote, urlsplit, urlunsplit

import yaml

from stages.core.records import Assignment, Document, Example, Kind, Partition, Reject, Track

PARTITIONS: tuple[Partition, ...] = get_args(Partition)
TRACKS: tuple[Track, ...] = get_args(Track)
KINDS: tuple[Kind, ...] = get_args(Kind)

LONGEST_STATEMENT = 160
LONGEST_TEXT = 300
"""Characters of a title or of a text in an example row."""
MOST_PAGES = 3
"""Pages that are named for one statement of a licence; the others are counted."""
MOST_STATEMENTS = 20


@dataclass(frozen=True)
class Teacher:
    """Who wrote the questions; `model` and `endpoint` are None where there is none."""

    kind: str
    model: str | None
    endpoint: str | None
    """Its address; a user, a password and a query in it are left out of the card."""


@dataclass(frozen=True)
class Licence:
    """A statement about rights, as it stands on one page or on several."""

    statement: str
    spdx: str | None
    """The SPDX name that it amounts to, where we know one."""
    pages: tuple[tuple[str, str], ...]
    """Title and address of each, sorted by the address."""


def card(
    name: str,
    documents: Sequence[Document],
    assignment: Sequence[Assignment],
    examples: Mapping[Partition, Sequence[Example]],
    rejects: Collection[Reject],
    teacher: Teacher,
    prompts: Mapping[str, str],
    leakage: str,
    zeros: Mapping[Kind, str],
) -> str:
    """The card as Markdown with YAML in front; equal data give equal bytes in any order.

    `prompts` are hashes by the prompt's name, `leakage` is the check's result in words, and `zeros`
    says why a kind has no example.
    """
    found = licences(documents)
    sections = [
        f"# {plain(name)}",
        "Questions and answers that a teacher wrote from documents, each with the passage that "
        "supports its answer. Docent made this card with the data.",
        "## Sources",
        _sources(documents),
        "## Licences as found",
        _licences(found, len(documents)),
        "## Examples",
        _kinds(examples, zeros),
        "## Partitions",
        "Pages that are nearly the same form a cluster. Each cluster was assigned to a partition "
        "before any question was written.",
        _partitions(assignment),
        "## Leakage",
        plain(leakage, None) or "Not checked.",
        "## Left out",
        _rejects(rejects),
        "## Teacher",
        _teacher(teacher, prompts),
        "## Two rows",
        *_rows(examples.get("train", ())),
    ]
    return _front(name, examples, found) + "\n" + "\n\n".join(sections) + "\n"


# --- parts -------------------------------------------------------------------------------------


def _front(
    name: str, examples: Mapping[Partition, Sequence[Example]], found: Sequence[Licence]
) -> str:
    """The hub's metadata. A page that names a licence need not be under it, so none is claimed."""
    size = sum(map(len, examples.values()))
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")]
    files = [
        {"split": partition, "path": f"{partition}.jsonl"}
        for partition in PARTITIONS
        if examples.get(partition)  # the hub's viewer fails on an empty file
    ]
    front: dict[str, Any] = {
        "pretty_name": name,
        "license": "other" if found else "unknown",
        "task_categories": ["question-answering", "text-generation"],
        "size_categories": [next((word for most, word in bounds if size < most), "n>1M")],
        "tags": ["docent", "synthetic"],
    }
    if found:
        front["license_name"] = "see-licences-as-found"
    if files:
        front["configs"] = [{"config_name": "default", "data_files": files}]
    # ASCII: PyYAML writes some line breaks of Unicode plain, and reads them as spaces.
    return f"---\n{yaml.safe_dump(front, sort_keys=True, width=1000)}---\n"


def _sources(documents: Sequence[Document]) -> str:
    by_source = defaultdict(list)
    for document in documents:
        by_source[document.source].append(document.url)
    if not by_source:
        return "None."
    rows = [
        [plain(name), _link(_common(urls), _common(urls)) or "several", str(len(urls))]
        for name, urls in sorted(by_source.items())
    ]
    return _table(["source", "address", "documents"], rows)


def _common(urls: Sequence[str]) -> str:
    """The folder that all addresses stand in; empty where they share no host of the web."""
    shared = commonprefix(urls)  # noqa: RUF071  (addresses, whose // commonpath would fold)
    folder = shared if len(set(urls)) == 1 else shared[: shared.rfind("/") + 1]
    return _public(folder) if _is_web(folder) else ""


def _licences(found: Sequence[Licence], num_documents: int) -> str:
    searched = f"The texts of {num_documents} documents were searched for statements of rights"
    if not found:
        return f"None found. {searched}, whose pages may state them where the crawl does not look."
    lines = [
        f"{searched}. What follows is quoted, not judged: a page may speak of the rights in "
        "something else."
    ]
    listed = []
    for licence in found[:MOST_STATEMENTS]:
        meant = f" ({plain(licence.spdx)})" if licence.spdx else ""
        pages = ", ".join(_link(title, url) for title, url in licence.pages[:MOST_PAGES])
        more = len(licence.pages) - MOST_PAGES
        others = f" and {more} more" if more > 0 else ""
        listed.append(f"- “{plain(licence.statement)}”{meant}: {pages}{others}")
    lines.append("\n".join(listed))
    if len(found) > MOST_STATEMENTS:
        lines.append(f"{len(found) - MOST_STATEMENTS} further statements are not listed.")
    return "\n\n".join(lines)


def _kinds(examples: Mapping[Partition, Sequence[Example]], zeros: Mapping[Kind, str]) -> str:
    """A row for each kind, a column for train, validation and each track of test."""
    test = examples.get("test", ())
    columns: dict[str, list[Example]] = {
        "train": list(examples.get("train", ())),
        "validation": list(examples.get("validation", ())),
        **{track: [row for row in test if row.track == track] for track in TRACKS},
    }
    if without := [row for row in test if row.track is None]:
        columns["test without a track"] = without
    counts = {name: Counter(row.kind for row in rows) for name, rows in columns.items()}
    rows = []
    for kind in KINDS:
        numbers = [counts[name][kind] for name in columns]
        why = "" if any(numbers) else zeros.get(kind, "")
        rows.append([kind, *map(str, numbers), plain(why)])
    rows.append(["all", *(str(len(found)) for found in columns.values()), ""])
    heading = [name.replace("_", "\\_") for name in columns]
    return _table(["kind", *heading, "why none"], rows)


def _partitions(assignment: Sequence[Assignment]) -> str:
    rows = []
    for partition in PARTITIONS:
        inside = [row.cluster_id for row in assignment if row.partition == partition]
        rows.append([partition, str(len(inside)), str(len(set(inside)))])
    return _table(["partition", "documents", "clusters"], rows)


def _rejects(rejects: Collection[Reject]) -> str:
    if not rejects:
        return "Nothing was left out."
    counts = Counter(reject.reason for reject in rejects)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _table(["reason", "rows"], [[plain(reason), str(count)] for reason, count in ranked])


def _teacher(teacher: Teacher, prompts: Mapping[str, str]) -> str:
    rows = [["kind", plain(teacher.kind)]]
    if teacher.model is not None:
        rows.append(["model", plain(teacher.model)])
    if teacher.endpoint is not None:
        rows.append(["endpoint", plain(_public(teacher.endpoint), None)])
    rows += [[f"prompt {plain(name)}", plain(prompts[name])] for name in sorted(prompts)]
    return _table(["what", "which"], rows)


def _rows(train: Sequence[Example]) -> list[str]:
    """Two of the training rows, of two kinds where there are; none that a model is tested on."""
    if not train:
        return ["There is no training row."]
    ranked = sorted(train, key=lambda row: row.id)
    other = [row for row in ranked if row.kind != ranked[0].kind]
    shown = [ranked[0], *(other or ranked[1:])[:1]]
    return ["Long texts are cut.", *map(_fenced, shown)]


def _fenced(row: Example) -> str:
    text = json.dumps(_cut(row.model_dump()), ensure_ascii=False, indent=2)
    text = "\n".join(HIDDEN.sub(_escape, line) for line in text.split("\n"))
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}json\n{text}\n{fence}"


def _escape(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"


def _cut(value: Any) -> Any:
    match value:
        case str():
            return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}…"
        case dict():
            return {key: _cut(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_cut(inner) for inner in value]
        case _:
            return value


# --- licences ----------------------------------------------------------------------------------

CREATIVE_COMMONS = re.compile(
    r"(?:creative commons|\bcc)[\s-]+(?:attribution|by)\b"
    r"(?P<parts>(?:[\s,–-]+(?:non-?commercial|nc|share-?alike|sa|no-?deriv(?:ative|ate)?s?|nd)\b)*)"
    r"\D{0,20}(?P<version>[1-4]\.\d)",
    re.IGNORECASE,
)
NAMED = (
    (r"\bapache(?: software)? licen[sc]e\W+(?:version )?2(?:\.0)?\b|\bapache-2\.0\b", "Apache-2.0"),
    (r"\bMIT licen[sc]e\b", "MIT"),
    (r"\bISC licen[sc]e\b", "ISC"),
    (r"\bBSD[\s-]2[\s-]clause\b|\b2[\s-]clause BSD\b", "BSD-2-Clause"),
    (r"\bBSD[\s-]3[\s-]clause\b|\b3[\s-]clause BSD\b", "BSD-3-Clause"),
    (r"\b(?:AGPL[\s-]?|affero general public licen[sc]e\W+)(?:v|version )?3", "AGPL-3.0"),
    (r"\b(?:LGPL[\s-]?|lesser general public licen[sc]e\W+)(?:v|version )?3", "LGPL-3.0"),
    (r"\b(?:GPL[\s-]?|gnu general public licen[sc]e\W+)(?:v|version )?3", "GPL-3.0"),
    (r"\b(?:GPL[\s-]?|gnu general public licen[sc]e\W+)(?:v|version )?2", "GPL-2.0"),
    (r"\bmozilla public licen[sc]e\W+(?:v|version )?2|\bMPL[\s-]?2\.0\b", "MPL-2.0"),
    (r"\b(?:python software foundation|PSF) licen[sc]e\W+(?:v|version )?2|\bPSF-2\.0\b", "PSF-2.0"),
    (r"\bCC0\b|\bcreative commons zero\b", "CC0-1.0"),
    (r"\bODbL\b|\bopen database licen[sc]e\b", "ODbL-1.0"),
    (r"\bGFDL\b|\bgnu free documentation licen[sc]e\b", "GFDL"),
    (r"\bunlicense\b", "Unlicense"),
)
NAMES = tuple((re.compile(pattern, re.IGNORECASE), spdx) for pattern, spdx in NAMED)
TAG = re.compile(r"SPDX-License-Identifier:\s*([\w.+-]+(?: (?:OR|AND|WITH) [\w.+-]+)*)")
STATEMENTS = re.compile(
    r"SPDX-License-Identifier:"
    r"|\blicen[sc]ed (?:under|to)\b"
    r"|\b(?:released|distributed|published|available|dedicated)\b[^.\n]{0,60}"
    r"(?:\blicen[sc]e\b|\bpublic domain\b)"
    r"|\bcreative commons\b|\bCC[\s-](?:BY|0)\b|\bCC0\b"
    r"|©\s*\S|\(c\)\s*(?:copyright\s*)?(?:19|20)\d\d|\bcopyright\s+(?:©|\(c\)|(?:19|20)\d\d)"
    r"|\ball rights reserved\b",
    re.IGNORECASE,
)
HINT = re.compile(
    r"licen[sc]e|copyright|©|\(c\)|commons|rights reserved|public domain|\bcc|apache-2"
    r"|GPL|MPL|PSF|BSD|ODbL|GFDL",
    re.IGNORECASE,
)
"""What every statement holds: most lines are told apart by one search and not by sixteen."""


def licences(documents: Sequence[Document]) -> list[Licence]:
    """The statements of rights in the documents, those that stand on most pages first.

    What a document says of its own text and of anything else looks the same, so all are listed.
    """
    pages = defaultdict(set)
    for document in documents:
        for statement in statements(document.text):
            pages[statement].add((document.url, document.title))
    found = [
        Licence(statement, spdx(statement), tuple((title, url) for url, title in sorted(where)))
        for statement, where in pages.items()
    ]
    return sorted(found, key=lambda licence: (-len(licence.pages), licence.statement))


def statements(text: str) -> list[str]:
    """The lines that state rights, or what of them stands around the statement, each once."""
    patterns = (STATEMENTS, *(pattern for pattern, _ in NAMES))
    found = []
    for line in filter(HINT.search, text.splitlines()):
        matches = (pattern.search(line) for pattern in patterns)
        starts = [match.start() for match in matches if match]
        if starts:
            found.append(_around(line, min(starts)))
    return list(dict.fromkeys(found))


def _around(line: str, start: int) -> str:
    """Up to LONGEST_STATEMENT characters of the line: all of it, or from before `start` on."""
    words = " ".join(line.split())
    if len(words) <= LONGEST_STATEMENT:
        return words
    before = " ".join(line[:start].split())[-40:]
    from_start = " ".join(f"{before} {line[start:]}".split())
    shown = from_start[:LONGEST_STATEMENT]
    return (
        ("…" if len(from_start) < len(words) else "")
        + shown
        + ("…" if len(shown) < len(from_start) else "")
    )


def spdx(statement: str) -> str | None:
    """The SPDX name that a statement amounts to; None where we know none, or it names several."""
    if tag := TAG.search(statement):
        return tag[1]
    found = {name for pattern, name in NAMES if pattern.search(statement)}
    for match in CREATIVE_COMMONS.finditer(statement):
        parts = match["parts"].lower()
        marks = (("nc", r"non|nc"), ("nd", r"deriv|nd"), ("sa", r"share|sa"))
        named = [mark.upper() for mark, pattern in marks if re.search(pattern, parts)]
        found.add("-".join(["CC-BY", *named, match["version"]]))
    return found.pop() if len(found) == 1 else None


# --- Markdown ----------------------------------------------------------------------------------

HIDDEN = re.compile(
    r"[\u0000-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)
"""Characters that turn the direction of a text or cannot be seen."""


def plain(text: str, longest: int | None = LONGEST_TEXT) -> str:
    """The text on one line, shown letter for letter: nothing in it is Markdown, HTML or a link."""
    words = " ".join(HIDDEN.sub("", " ".join(text.split())).split())
    if longest is not None and len(words) > longest:
        words = f"{words[:longest]}…"
    escaped = re.sub(r"([\\`*_{}\[\]<>()#+!|~&@$^=])", r"\\\1", words)
    escaped = re.sub(r"^(\d{1,9})([.)])|^(-)", r"\1\\\2\3", escaped)
    escaped = re.sub(r"(?i)\b(https?|ftp|mailto|xmpp):", r"\1\\:", escaped)
    return re.sub(r"(?i)\bwww\.", lambda match: f"{match[0][:-1]}\\.", escaped)


def _link(title: str, url: str) -> str:
    """A link to a page of the web; anything else is its title alone."""
    if not _is_web(url):
        return plain(title)
    public = _public(url)
    return f"[{plain(title or public)}]({quote(public, safe=':/%~._-+,;=@!$&')})"


def _is_web(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:  # such as half an address of IPv6
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _public(address: str) -> str:
    """The address without a user, a password or a query, which may be secrets."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
