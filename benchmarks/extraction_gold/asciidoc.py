"""A page's AsciiDoc to what its extraction should hold."""

import re
from pathlib import Path

from benchmarks.extraction_gold.records import Code, Gold, Title, dense

UNDERLINES = "=-~^+"
DELIMITER = re.compile(r"(-{4,}|\.{4,}|={4,}|_{4,}|\*{4,}|/{4,}|\+{4,}|-{2})\s*")
OPTION = re.compile(r"\s*([`'(]*--?[\w<].*?)::+\s*")


def read_asciidoc(text: str, folder: Path) -> Gold:
    gold = Gold()
    lines = _included(text, folder).splitlines()
    identity = ""
    manual = bool(re.match(r"[\w.-]+\(\d\)$", lines[0])) if lines else False
    n, hidden = 0, 0
    while n < len(lines):
        line = lines[n].rstrip()
        below = lines[n + 1].rstrip() if n + 1 < len(lines) else ""
        if re.match(r"if(?:n?def|eval)::\S*\[\]", line):
            hidden += 1
        elif re.match(r"endif::", line):
            hidden -= 1
        found = re.fullmatch(r"\[\[([^\],]+).*\]\]", line)
        if found:
            identity = found.group(1)
        inline = re.fullmatch(r"(={1,5}) (\S.*?)(?: =+)?", line)
        above = lines[n - 1].strip() if n else ""
        if _is_underlined(line, below) and (not above or above.startswith(("[", "//", ":"))):
            _title(gold, line, UNDERLINES.index(below[0]) + 1, identity, manual, hidden)
            identity = ""
            n += 2
            continue
        if inline:
            _title(gold, inline.group(2), len(inline.group(1)), identity, manual, hidden)
            identity = ""
        mark = DELIMITER.fullmatch(line)
        if mark and line[0] in "-.+/" and len(line.strip()) >= 4:
            end = n + 1
            while end < len(lines) and lines[end].rstrip() != line:
                end += 1
            body = "\n".join(lines[n + 1 : end]).expandtabs(8)
            written = bool(body.strip()) and "ifdef::" not in body and not hidden
            if line[0] in "-." and written and not re.search(r"<\d+>\s*$", body, re.M):
                code = "\n".join(row.rstrip() for row in body.splitlines())
                gold.codes.append(Code(code.strip("\n"), ""))
            n = end + 1
            continue
        option = OPTION.fullmatch(line)
        if option and not hidden and "{" not in line:
            term = option.group(1).replace("...", "…").replace("->", "→")
            gold.signatures.append(re.sub(r"[`']", "", term))
        n += 1
    return gold


def _included(text: str, folder: Path) -> str:
    def include(found: re.Match[str]) -> str:
        path = folder / found.group(1)
        return path.read_text(errors="replace") if path.is_file() else ""

    for _ in range(3):
        text = re.sub(r"^include::([^\[]+)\[.*\]\s*?$", include, text, flags=re.M)
    return text


def _is_underlined(line: str, below: str) -> bool:
    return (
        bool(re.search(r"\w", line))
        and not line.startswith((" ", "\t", "[", ":", "//"))
        and len(below) >= 2
        and below[0] in UNDERLINES
        and below == below[0] * len(below)
        and abs(len(line) - len(below)) <= 2
    )


def _title(gold: Gold, text: str, level: int, identity: str, manual: bool, hidden: int) -> None:
    if hidden or "{" in text:
        return
    found = re.search(r"\s*\[\[([^\]]+)\]\]$", text)
    if found:
        text, identity = text[: found.start()], found.group(1)
    marked = bool(re.search(r"[`\[\]<']|://|@| -- ", text))
    text = re.sub(r"linkgit:([\w-]+)\[(\d)\]", r"\1(\2)", text)
    text = re.sub(r"(?:link|https?):\S+\[(.*?)\]", r"\1", text)
    anchors = frozenset({dense(text), dense(identity)} - {""})
    if level == 1 and manual:
        text += " Manual Page"
    if level == 1 or text == "NAME" or marked:
        anchors = frozenset()  # it has none, or one made from the marks
    gold.titles.append(Title(level, text, anchors))
