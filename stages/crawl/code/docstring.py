"""Docstrings in the forms of Google, NumPy and Sphinx to Markdown: parameters as a list, examples
as code."""

import re
from collections.abc import Iterator, Sequence

from stages.crawl.files.draft import fence

_GOOGLE = re.compile(
    r"(Args|Arguments|Attributes|Keyword Args|Keyword Arguments|Other Parameters|Parameters|"
    r"Raises|Returns|Warns|Yields):\s*$"
)
_NUMPY = re.compile(
    r"(Attributes|Methods|Other Parameters|Parameters|Raises|Receives|Returns|Warns|Yields)\s*$"
)
_FIELD = re.compile(
    r":(?:param|parameter|arg|argument|key|keyword|raises?|except|exception|var|ivar|cvar|"
    r"returns?|yields?)\b([^:]*):\s*(.*)$"
)
_TYPE_FIELD = re.compile(r":(?:type|rtype|vartype)\b[^:]*:")
_NAMED = re.compile(r"(\*{0,2}[\w.]+)\s*(?:\(([^()]*(?:\([^()]*\)[^()]*)*)\))?\s*:\s*(.*)$")
_RESULTS = ("Returns", "Yields", "Receives")


def markdown(docstring: str) -> str:
    """The docstring as `inspect.cleandoc` gives it, as Markdown."""
    lines = docstring.split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_rendered(lines))).strip("\n")


def _rendered(lines: Sequence[str]) -> Iterator[str]:
    place = 0
    while place < len(lines):
        line = lines[place]
        google = _GOOGLE.match(line)
        rule = lines[place + 1].strip() if place + 1 < len(lines) else ""
        if google and place + 1 < len(lines):
            end = _end_of_indented(lines, place + 1)
            if end > place + 1:
                yield from ("", f"**{google[1]}:**", "")
                yield from _google(lines[place + 1 : end], google[1] in _RESULTS)
                yield ""
                place = end
                continue
        if len(rule) > 2 and not rule.strip("-=") and line.strip():
            named = _NUMPY.match(line)
            yield from ("", f"**{line.strip()}:**", "")
            place += 2
            if named:
                end = _end_of_numpy(lines, place)
                yield from _numpy(lines[place:end])
                yield ""
                place = end
            continue
        if line.lstrip().startswith(">>>"):
            end = place
            while end < len(lines) and lines[end].strip():
                end += 1
            indent = len(line) - len(line.lstrip())
            yield from ("", fence("\n".join(row[indent:] for row in lines[place:end]), "pycon"), "")
            place = end
            continue
        if _TYPE_FIELD.match(line):
            place += 1
            continue
        if field := _FIELD.match(line):
            words = [field[2]]
            place += 1
            while place < len(lines) and lines[place][:1] in (" ", "\t"):
                words.append(lines[place].strip())
                place += 1
            said = " ".join(word for word in words if word)
            name = (field[1].split() or [""])[-1]
            yield f"- `{name}`: {said}" if name else f"- Returns: {said}"
            continue
        if line.rstrip().endswith("::") and _end_of_indented(lines, place + 1) > place + 1:
            end = _end_of_indented(lines, place + 1)
            before = line.rstrip()[:-1] if line.strip() != "::" else ""
            code = lines[place + 1 : end]
            indent = min(len(row) - len(row.lstrip()) for row in code if row.strip())
            if not before.lstrip().startswith(".. "):
                yield before
            yield from ("", fence("\n".join(row[indent:] for row in code)), "")
            place = end
            continue
        yield line
        place += 1


def _end_of_indented(lines: Sequence[str], place: int) -> int:
    """Where the block ends that is indented, blank lines inside of it included."""
    end = place
    for number in range(place, len(lines)):
        if lines[number].strip() and lines[number][:1] not in (" ", "\t"):
            break
        if lines[number].strip():
            end = number + 1
    return end


def _google(lines: Sequence[str], results: bool) -> Iterator[str]:
    """Items as `name (type): words`, each with the lines that are indented further."""
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    item: list[str] = []
    for line in lines:
        deeper = len(line) - len(line.lstrip()) > indent
        if line.strip() and not deeper and item:
            yield " ".join(item)
            item = []
        words = line.strip()
        if not words:
            continue
        named = None if results or item else _NAMED.match(words)
        if named:
            kind = f" ({named[2]})" if named[2] else ""
            words = f"- `{named[1]}`{kind}: {named[3]}".rstrip()
        elif not item and not results:
            words = f"- {words}"
        item.append(words)
    if item:
        yield " ".join(item)


def _end_of_numpy(lines: Sequence[str], place: int) -> int:
    """Where the section ends: before the next underlined title."""
    for number in range(place, len(lines) - 1):
        rule = lines[number + 1].strip()
        if lines[number].strip() and len(rule) > 2 and not rule.strip("-="):
            return number
    return len(lines)


def _numpy(lines: Sequence[str]) -> Iterator[str]:
    """Items as `name : type`, each with indented words below."""
    item: list[str] = []
    for line in lines:
        if line.strip() and line[:1] not in (" ", "\t"):
            if item:
                yield " ".join(item)
            name, colon, kind = line.partition(" : ")
            item = [f"- `{name.strip()}`" + (f" ({kind.strip()}):" if colon else ":")]
        elif line.strip():
            item.append(line.strip())
    if item:
        yield " ".join(item)
