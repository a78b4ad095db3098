"""A page's reStructuredText to what its extraction should hold."""

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import Directive, directives, roles

from benchmarks.extraction_gold.docstrings import Docstrings
from benchmarks.extraction_gold.records import Code, Gold, Title, dense

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
        if name in ("module", "automodule", "currentmodule"):
            self.state.document.settings.current = argument.strip()
        if name in SILENT and name != "automodule":
            return []
        if name.startswith("auto"):
            self._bring(gold, name, argument.strip().removeprefix("."))
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

    def _bring(self, gold: Gold, name: str, argument: str) -> None:
        """What autodoc finds in the code."""
        settings = self.state.document.settings
        found: Docstrings | None = settings.docstrings
        if found is None:
            return
        if name == "automodule":
            texts = [found.of_module(argument)]
        else:
            named = argument.partition("(")[0]
            module, _, last = named.rpartition(".")
            texts = found.of(settings.current, named) or found.of(module, last)
        for text in texts:
            gold.brought.append(text)
            gold.num_references += len(re.findall(r":(?:ref|doc):`[^`<]*`", text))
            # Titles stand below an underline of their own length, at the margin.
            gold.brought_titles += re.findall(r"^(\S.*)\n(?:={3,}|-{3,}|~{3,}|\^{3,})$", text, re.M)

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


def read_rst(text: str, docstrings: Docstrings | None = None) -> Gold:
    """With the docstrings that the page asks for, where its package is at hand."""
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
        "current": "",
        "docstrings": docstrings,
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
