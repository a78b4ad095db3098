"""A page in Python-Markdown's dialect, as MkDocs builds it, to what its extraction should hold.

The rules are those of Python-Markdown 3.4 with its extensions extra, admonition, smarty,
codehilite and toc: a container's content stands four columns in, a fence at the margin only, an
indented block may name its language in a first line that is not shown. Tables and raw HTML are
left out.
"""

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt

from benchmarks.extraction_gold.markdown import words
from benchmarks.extraction_gold.records import Code, Gold, Title, dense

META = re.compile(r"(?:\w[\w-]*:.*\n(?: {4,}.*\n)*)+\s*\n")
FENCE = re.compile(
    r"^(?P<fence>~{3,}|`{3,})[ ]*(?:\{[^}\n]*\}|\.?[\w#.+-]*[ ]*(?:hl_lines=.*?)?[ ]*)\n"
    r"(?P<code>.*?)(?<=\n)(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
RAW = re.compile(r"^<(\w+)\b[^\n]*>.*?^</\1>", re.MULTILINE | re.DOTALL)
REFERENCE = re.compile(r" {0,3}\[[^\]]*\]:\s*\S+.*")
MARKERS = re.compile(r"(?:::+|#!)(?P<path>(?:/\w+)*[/ ])?")
"""At the head of an indented block: a language that is taken away, or a path that is kept."""
ITEM = re.compile(r" {0,3}(?:[*+-]|\d+\.) +(.*)")
NESTED = re.compile(r" {4,7}(?:[*+-]|\d+\.) +")
DEFINITION = re.compile(r" {0,3}: {1,3}(.*)")
FOOTNOTE = re.compile(r" {0,3}\[\^[^\]]*\]: *(.*)")
ABBREVIATION = re.compile(r" {0,3}\*\[[^\]]*\] ?:.*")
ADMONITION = re.compile(r"!!! ?[\w-]+(?: +[\w-]+)*(?: +\".*?\")? *")
HASHED = re.compile(r"(#{1,6})((?:\\.|[^\\])*?)#*")
UNDERLINE = re.compile(r"=+ *|-+ *")
RULE = re.compile(r" {0,3}(?:(?:-+ {0,2}){3,}|(?:_+ {0,2}){3,}|(?:\*+ {0,2}){3,}) *")
ATTRIBUTES = re.compile(r" +\{:? *([^}\n ][^}\n]*) *\} *$")
OF_INLINE = re.compile(r"^\{:? *[^}\n ][^}\n]*\}")
CUT = "\0"
"""Stands where a fence or raw HTML was, which ends every block at the margin."""


def read_python_markdown(text: str) -> Gold:
    gold = Gold()
    text = re.sub(r"^ +$", "", text.expandtabs(4), flags=re.MULTILINE)
    text = META.sub("", text, count=1) if META.match(text) else text

    def cut(found: re.Match[str]) -> str:
        # Pygments writes no language into a page, so that the gold asks for none.
        gold.codes.append(Code(found["code"].strip("\n"), ""))
        return f"\n{CUT}\n"

    lines = RAW.sub(f"\n{CUT}\n", FENCE.sub(cut, text)).splitlines()
    env: dict[str, Any] = {}
    MarkdownIt("commonmark").parse("\n".join(filter(REFERENCE.fullmatch, lines)), env)
    _read(gold, lines, env)
    return gold


def _read(gold: Gold, lines: Sequence[str], env: Mapping[str, Any]) -> None:
    n = 0
    while n < len(lines):
        if not lines[n].strip() or lines[n] == CUT:
            n += 1
            continue
        end = n
        if lines[n].startswith("    "):
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            _code(gold, [line[4:] for line in lines[n:end]])
            n = end
            continue
        end = _end(lines, n)
        block, n = lines[n:end], end
        if _holds_more(block):
            while n < len(lines) and (lines[n].startswith("    ") or not lines[n].strip()):
                n += 1
        _block(gold, block, lines[end:n], env)


def _end(lines: Sequence[str], start: int) -> int:
    """Where the block that begins at the margin ends: headings and boxes are blocks of their own,
    with no blank line around them."""
    if HASHED.fullmatch(lines[start]):
        return start + 1
    if start + 1 < len(lines) and UNDERLINE.fullmatch(lines[start + 1]):
        return start + 2
    boxed = ADMONITION.fullmatch(lines[start])
    end = start + 1
    while end < len(lines) and lines[end].strip() and lines[end] != CUT:
        if HASHED.fullmatch(lines[end]) or ADMONITION.fullmatch(lines[end]):
            break
        if boxed and not lines[end].startswith("    "):
            break
        end += 1
    return end


def _holds_more(block: Sequence[str]) -> bool:
    """Whether indented blocks below it belong to it."""
    opens = (ITEM, FOOTNOTE, ADMONITION)
    return (
        any(form.fullmatch(block[0]) for form in opens) and not RULE.fullmatch(block[0])
    ) or any(map(DEFINITION.fullmatch, block))


def _block(gold: Gold, block: Sequence[str], below: Sequence[str], env: Mapping[str, Any]) -> None:
    """One block, whose first line stands at the margin, with the indented lines below it."""
    hashed = HASHED.fullmatch(block[0])
    if hashed:
        _title(gold, len(hashed[1]), hashed[2].strip(), env)
    elif len(block) > 1 and UNDERLINE.fullmatch(block[1]):
        _title(gold, 1 if block[1][0] == "=" else 2, block[0].strip(), env)
    elif ADMONITION.fullmatch(block[0]):
        _read(gold, _dedented([*block[1:], *below]), env)
    elif RULE.fullmatch(block[0]):
        _read(gold, block[1:], env)
    elif ITEM.fullmatch(block[0]):
        _contents(gold, block, below, env, ITEM)
    elif block[0].startswith(">"):
        _read(gold, [re.sub(r"^ {0,3}> ?", "", line) for line in block], env)
    elif any(map(DEFINITION.fullmatch, block)):
        first = next(n for n, line in enumerate(block) if DEFINITION.fullmatch(line))
        gold.paragraphs += [_words(line, env) for line in block[:first]]
        _contents(gold, block[first:], below, env, DEFINITION)
    elif FOOTNOTE.fullmatch(block[0]):
        _contents(gold, block, below, env, FOOTNOTE)
    elif not _is_table(block) and not re.match(r"</?\w", block[0]):
        silent = (REFERENCE, ABBREVIATION)
        kept = [line for line in block if not any(form.fullmatch(line) for form in silent)]
        if kept:
            gold.paragraphs.append(_words("\n".join(kept), env))


def _contents(
    gold: Gold,
    block: Sequence[str],
    below: Sequence[str],
    env: Mapping[str, Any],
    opening: re.Pattern[str],
) -> None:
    """Each item that opens in the block; the last one has what stands below."""
    items: list[list[str]] = []
    is_nested = False
    for line in block:
        found = opening.fullmatch(line)
        if found:
            items.append([found[1]])
            is_nested = False
            continue
        if NESTED.match(line) and not is_nested:
            items[-1].append("")
            is_nested = True
        # Before a nested item the lines go on with the item's own, wherever they begin.
        items[-1].append(line[4:] if is_nested and line.startswith("    ") else line.strip())
    items[-1] += ["", *_dedented(below)]
    for item in items:
        _read(gold, item, env)


def _dedented(lines: Sequence[str]) -> list[str]:
    return [line[4:] if line.startswith("    ") else line for line in lines]


def _is_table(block: Sequence[str]) -> bool:
    return len(block) > 1 and "|" in block[0] and bool(re.fullmatch(r"[|:\s-]*-[|:\s-]*", block[1]))


def _code(gold: Gold, lines: list[str]) -> None:
    rows = "\n".join(lines).strip("\n").split("\n")
    found = MARKERS.match(rows[0])
    if found and not found["path"]:
        rows = rows[1:]
    gold.codes.append(Code("\n".join(rows).strip("\n"), ""))


def _title(gold: Gold, level: int, written: str, env: Mapping[str, Any]) -> None:
    attributes = ATTRIBUTES.search(written)
    identity = ""
    if attributes:
        written = written[: attributes.start()]
        named = re.search(r"(?:^|\s)#([^\s}]+)", attributes[1])
        identity = named[1] if named else ""
    text = _words(written, env)
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    gold.titles.append(Title(level, text, frozenset({dense(identity or ascii_only)} - {""})))
    if re.search(r"\w\(|`[^`]*\(", written):
        gold.signatures.append(text)


def _words(written: str, env: Mapping[str, Any]) -> str:
    [inline] = MarkdownIt("commonmark").parseInline(written, {**env})
    children = inline.children or []
    for before, child in itertools.pairwise(children):
        if child.type == "text" and before.type not in ("text", "softbreak"):
            child.content = OF_INLINE.sub("", child.content)
    return words(inline)
