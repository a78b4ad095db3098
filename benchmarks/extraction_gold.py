"""Four manuals to what a perfect extraction of each page holds, read from the pages' sources.

The sources stand beside the HTML in Debian's packages. Nothing here looks at the HTML: headings,
code, signatures and navigation are what the authors wrote, in reStructuredText, AsciiDoc or
Markdown. A form that the source alone does not settle (an included file that is not there, a
marker of the site's own theme) is left out of the gold.
"""

import contextlib
import functools
import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import Directive, directives, roles
from markdown_it import MarkdownIt
from markdown_it.token import Token


@dataclass(frozen=True)
class Title:
    level: int
    text: str
    anchors: frozenset[str]
    """Fragments that the source allows for it, in letters and digits only; empty where it does not
    say one."""


@dataclass(frozen=True)
class Code:
    text: str
    language: str
    """Empty where the source names none."""
    shown: str = ""
    """As a generator may show it instead: Sphinx hides the flags of tests in some languages."""


@dataclass
class Gold:
    titles: list[Title] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    num_references: int = 0
    """References to other pages by their titles, which the source does not hold."""


@dataclass(frozen=True)
class Source:
    name: str
    html: Path
    package: str
    generator: str
    pages: Callable[[], Iterator[tuple[Path, str]]]
    """Each page's HTML and its source."""
    read: Callable[[str], Gold]
    navigation: tuple[str, ...]
    """Lines of the site's frame, beside the titles of its other pages."""


def dense(text: str) -> str:
    """Letters and digits only, in lower case."""
    return "".join(re.findall(r"\w", text.casefold())).replace("_", "")


# --- reStructuredText --------------------------------------------------------------------------

SIGNED = re.findall(
    r"\S+",
    """
    function method class data attribute exception decorator classmethod staticmethod
    coroutinemethod coroutinefunction abstractmethod decoratormethod awaitablefunction
    awaitablemethod c:function c:member c:type c:var c:macro cmdoption option opcode
    envvar py:function py:attribute py:method py:class describe object pdbcommand
    2to3fixer property
    """,
)
AUTOMATIC = ("autoclass", "autofunction")
CODE = {"code-block", "sourcecode", "code", "doctest", "testcode", "ipython", "prompt"}
SILENT = {"index", "toctree", "contents", "raw", "include", "literalinclude", "testsetup", "image"}
SILENT |= {"testcleanup", "sectionauthor", "moduleauthor", "tabularcolumns", "highlight", "figure"}
SILENT |= {"currentmodule", "program", "productionlist", "audit-event-table", "changelog_imports"}
SILENT |= {"automodule", "meta", "rst-class", "dialect-table", "sidebar", "parsed-literal", "math"}
SILENT |= {"footer_topic", "miscnews", "change", "changelog", "availability", "audit-event"}


class _AnyOption(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        return lambda value: value


class _Known(Directive):
    """Any directive of Sphinx's or of a site's own: docutils knows few of them."""

    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = _AnyOption(name=None)

    def run(self) -> list[nodes.Node]:
        name = self.name.removeprefix("py:") if self.name not in SIGNED else self.name
        gold: Gold = self.state.document.settings.gold
        argument = self.arguments[0] if self.arguments else ""
        if name in CODE:
            return self._code(gold, name, argument)
        if name in ("module", "automodule"):
            self.state.document.settings.modules.append(argument.strip())
        if name in SILENT and name != "automodule":
            return []
        if name in SIGNED and "noindex" not in self.options:
            text = argument.replace("\\\n", " ")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            around = self.state.document.settings.around
            # Within its class a method is shown without the class's name.
            lines = [line.removeprefix(f"{around[-1]}." if around else "") for line in lines]
            if name in ("class", "exception"):
                lines = [line.removesuffix("()") for line in lines]
            gold.signatures += [re.sub(r"\\(.)", r"\1", line) for line in lines]
            around.append(re.split(r"[\s(]", lines[0])[0] if lines else "")
            body = self._body()
            around.pop()
            return body
        if name in AUTOMATIC:
            gold.signatures.append(argument.strip().removeprefix(".").rpartition(".")[2])
        return self._body()

    def _body(self) -> list[nodes.Node]:
        body = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, body)
        return [body]

    def _code(self, gold: Gold, name: str, language: str) -> list[nodes.Node]:
        if "hide" in self.options:
            return []
        text = "\n".join(self.content)
        if name in ("doctest", "testcode"):
            language = ""
        if not re.search(r"\{(?:sql|stop|opensql)\}", text):
            gold.codes.append(_code(text, language.strip()))
        return []


def _code(text: str, language: str) -> Code:
    text = re.sub(r"\{(?:opensql|execsql|stop|printsql)\}", "", text).strip("\n")
    return Code(text, language, _doctest(text).strip("\n"))


def _doctest(text: str) -> str:
    text = re.sub(r"^\s*<BLANKLINE>", "", text, flags=re.M)
    return re.sub(r"\s*#\s*doctest:.*?$", "", text, flags=re.M)


def _role(
    name: str,
    raw: str,
    text: str,
    lineno: int,
    inliner: Any,
    options: Any = None,
    content: Any = (),
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    named = re.fullmatch(r"(.*?)\s*<[^<>]*>", text, re.S)
    shown = named.group(1) if named else text.removeprefix("!")
    if not named and re.match(r"[~.]|_(?!_)", text):
        shown = text[1:].rpartition(".")[2]
    if name in ("ref", "doc") and not named:
        shown = ""  # the title of a page elsewhere
        inliner.document.settings.gold.num_references += 1
    if name in ("pep", "rfc"):
        shown = f"{name.upper()} {shown}"
    return [nodes.inline(raw, shown)], []


@contextlib.contextmanager
def _every_directive() -> Iterator[None]:
    """As long as this lasts docutils takes every directive and role."""
    find_directive, find_role = directives.directive, roles.role
    ours = {*SIGNED, *AUTOMATIC, *CODE, *SILENT, "module", "py:module"} - {"container"}

    @functools.wraps(find_directive)
    def directive(name: str, language: Any, document: Any) -> Any:
        if name in ours:
            return _Known, []
        found = find_directive(name, language, document)
        return found if found[0] is not None else (_Known, [])

    @functools.wraps(find_role)
    def role(name: str, language: Any, lineno: int, reporter: Any) -> Any:
        if name in ("emphasis", "strong", "literal", "sub", "sup", "math", "superscript"):
            return find_role(name, language, lineno, reporter)
        return _role, []

    directives.directive, roles.role = directive, role
    try:
        yield
    finally:
        directives.directive, roles.role = find_directive, find_role


def read_rst(text: str) -> Gold:
    gold = Gold()
    modules: list[str] = []
    settings = {
        "report_level": 5,
        "halt_level": 6,
        "doctitle_xform": False,
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "gold": gold,
        "modules": modules,
        "around": [],
        "smart_quotes": False,
        "_disable_config": True,
    }
    with _every_directive():
        document = publish_doctree(text, settings_overrides=settings)
    for section in document.findall(nodes.section):
        title = section[0].astext()
        ids = {*section["ids"], *section["names"], nodes.make_id(title)}
        ids |= {f"module-{module}" for module in modules}
        ids |= {"", *(target for target in _targets(section))}
        level, above = 1, section.parent
        while above is not None:
            level += isinstance(above, nodes.section)
            above = above.parent
        if title.strip() and "|" not in title:
            gold.titles.append(Title(level, title, frozenset(map(dense, ids)) - {""}))
    for block in document.findall(nodes.literal_block):
        # A block that the reader could not read is shown as it was written, below a message.
        if not isinstance(block.parent, nodes.system_message) and not re.search(
            r"\{(?:sql|stop|opensql)\}", block.astext()
        ):
            gold.codes.append(_code(block.astext(), ""))
    for block in document.findall(nodes.doctest_block):
        gold.codes.append(_code(block.astext(), ""))
    for paragraph in document.findall(nodes.paragraph):
        if not isinstance(paragraph.parent, nodes.system_message):
            gold.paragraphs.append(paragraph.astext())
    return gold


def _targets(section: nodes.section) -> Iterator[str]:
    """The labels that stand before a section."""
    place = section.parent.index(section)
    while place and isinstance(section.parent[place - 1], nodes.target | nodes.comment):
        place -= 1
        yield from section.parent[place].get("ids", ())
        yield str(section.parent[place].get("refid", ""))


# --- AsciiDoc ----------------------------------------------------------------------------------

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


# --- Markdown ----------------------------------------------------------------------------------


def read_markdown(text: str) -> Gold:
    gold = Gold()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    page = ""
    for token, inside in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and inside is not None:
            title = _words(inside)
            page = page or title
            anchors = {dense(title), dense(page + title)}
            gold.titles.append(Title(int(token.tag[1]), title, frozenset(anchors)))
            if "(" in title:
                gold.signatures.append(title)
        elif token.type in ("fence", "code_block"):
            language = token.info.split()[0] if token.info.split() else ""
            gold.codes.append(Code(token.content.strip("\n"), language))
        elif token.type == "paragraph_open" and inside is not None:
            gold.paragraphs.append(_words(inside))
    return gold


def _words(inline: Token) -> str:
    parts = []
    for child in inline.children or ():
        if child.type in ("text", "code_inline"):
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
    return "".join(parts)


# --- the four ----------------------------------------------------------------------------------

PYTHON = Path("/usr/share/doc/python3-doc/html")
SQLALCHEMY = Path("/usr/share/doc/python-sqlalchemy-doc")
GIT = Path("/usr/share/doc/git-doc")
NODE = Path("/usr/share/doc/nodejs/api")


def _python() -> Iterator[tuple[Path, str]]:
    for source in sorted((PYTHON / "_sources").rglob("*.rst.txt")):
        name = source.relative_to(PYTHON / "_sources").as_posix().removesuffix(".rst.txt")
        if name != "whatsnew/changelog":  # written when the manual is built
            yield PYTHON / f"{name}.html", source.read_text()


def _sqlalchemy() -> Iterator[tuple[Path, str]]:
    for source in sorted((SQLALCHEMY / "rst").rglob("*.rst")):
        name = source.relative_to(SQLALCHEMY / "rst").as_posix().removesuffix(".rst")
        if not name.startswith("changelog/"):
            yield SQLALCHEMY / "html" / f"{name}.html", source.read_text()


def _git() -> Iterator[tuple[Path, str]]:
    for page in sorted(GIT.glob("*.html")):
        source = page.with_suffix(".txt")
        if source.is_file() and page.name != "user-manual.html":  # DocBook made that one
            yield page, source.read_text(errors="replace")


def _node() -> Iterator[tuple[Path, str]]:
    for source in sorted([*NODE.glob("*.md"), *NODE.glob("*.md.gz")]):
        opened = gzip.open if source.suffix == ".gz" else open
        with opened(source, "rt", encoding="utf-8") as file:
            yield NODE / f"{source.name.partition('.md')[0]}.html", str(file.read())


SOURCES = (
    Source(
        "python3-doc",
        PYTHON,
        "python3-doc",
        "Sphinx",
        _python,
        read_rst,
        (
            "Previous topic",
            "Next topic",
            "This Page",
            "Report a Bug",
            "Show Source",
            "Quick search",
            "Navigation",
            "Theme",
            "previous",
            "next",
            "modules",
            "index",
            "Created using Sphinx",
            "Python »",
            "3.11.2 Documentation »",
            "Found a bug?",
            "Table of Contents",
        ),
    ),
    Source(
        "python-sqlalchemy-doc",
        SQLALCHEMY / "html",
        "python-sqlalchemy-doc",
        "Sphinx, a theme without a known frame",
        _sqlalchemy,
        read_rst,
        (
            "SQLAlchemy 1.4 Documentation",
            "Home",
            "Search terms:",
            "Previous:",
            "Next:",
            "Copyright",
            "Release: 1.4.46",
            "Release Date: January 3, 2023",
            "Quick search",
            "Created using Sphinx",
        ),
    ),
    Source(
        "git-doc",
        GIT,
        "git-doc",
        "AsciiDoc",
        _git,
        lambda text: read_asciidoc(text, GIT),
        ("Last updated", "Table of Contents"),
    ),
    Source(
        "nodejs-doc",
        NODE,
        "nodejs-doc",
        "Markdown, Node.js's own",
        _node,
        read_markdown,
        (
            "Node.js",
            "Table of contents",
            "Index",
            "View on single page",
            "View as JSON",
            "Options",
            "Edit on GitHub",
            "About this documentation",
            "Usage and example",
            "Other versions",
            "Code repository and issue tracker",
            "View another version",
            "Skip to content",
        ),
    ),
)
HELD_OUT = "nodejs-doc"
"""Its HTML was neither read nor extracted before the final run."""
