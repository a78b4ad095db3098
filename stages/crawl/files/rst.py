"""reStructuredText to HTML by docutils, with Sphinx's roles and directives read for their words."""

import re
from typing import Any

from docutils import nodes, utils  # type: ignore[import-untyped]
from docutils.core import publish_doctree, publish_parts  # type: ignore[import-untyped]
from docutils.io import DocTreeInput  # type: ignore[import-untyped]
from docutils.parsers import rst  # type: ignore[import-untyped]
from docutils.parsers.rst import directives, states  # type: ignore[import-untyped]
from docutils.parsers.rst.languages import en  # type: ignore[import-untyped]

from stages.crawl.files import webpage
from stages.crawl.files.addresses import Place
from stages.crawl.files.text import decode
from stages.crawl.page import Page, UnreadableError

LONGEST_LINE = 10_000
"""Characters; docutils reads no longer one, so that no substitution grows without end."""

_SETTINGS = {
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "_disable_config": True,
    "report_level": 5,
    "halt_level": 5,
    "syntax_highlight": "none",
    "line_length_limit": LONGEST_LINE,
    "embed_stylesheet": False,
    "initial_header_level": 2,
    "traceback": True,
}
_NAMED = re.compile(r"^[ \t]*\.\. +(?:\|[^|\n]+\| +)?([\w:.+-]+)::", re.M)
_TARGET = re.compile(r"(?s)^(.*?)\s*<[^<>]+>$")
_DROPPED = re.compile(
    r"(?:index|toctree|highlight|currentmodule|module|py:module|py:currentmodule|default-domain|"
    r"only|tabularcolumns|testsetup|testcleanup|auto\w+|sectionauthor|codeauthor|image-sg|meta)$"
)
_CODE = re.compile(r"(?:.*-)?(?:code-block|sourcecode|code|prompt|doctest|testcode|testoutput)$")
_OURS = ("code", "code-block", "sourcecode")  # whose options docutils does not know
_DESCRIBED = re.compile(
    r"(?:\w+:)?(?:function|class|method|attribute|data|exception|classmethod|staticmethod|property|"
    r"decorator|option|cmdoption|envvar|describe|object|confval|type|macro|member|struct|enum)$"
)
_CHANGED = {
    "versionadded": "New in version",
    "versionchanged": "Changed in version",
    "deprecated": "Deprecated since version",
    "versionremoved": "Removed in version",
}


def parse(body: bytes, at: Place) -> Page:
    """No file is included and nothing is passed through raw."""
    text = decode(body)
    if any(len(line) > LONGEST_LINE for line in text.split("\n")):
        raise UnreadableError("line_too_long", f"a line of more than {LONGEST_LINE} characters")
    return webpage.of_html(f"<main>{html(text)}</main>", at)


def html(text: str) -> str:
    """The body of the page, without an element around it."""
    for name in {*_NAMED.findall(text), *_OURS}:
        known = name in directives._directive_registry or name in en.directives
        if name in _OURS or not (known or name in directives._directives):
            directives.register_directive(name, _Unknown)  # docutils keeps it
    try:
        tree = publish_doctree(
            text,
            parser=rst.Parser(inliner=_inliner()),
            settings_overrides={"input_encoding": "unicode", **_SETTINGS},
        )
        for node in tree.findall(nodes.literal):
            node["classes"].append("code")  # else it is written as a span
        parts = publish_parts(
            tree,
            source_class=DocTreeInput,
            reader="doctree",
            writer="html5",
            settings_overrides=_SETTINGS,
        )
    except (utils.SystemMessage, ValueError, LookupError, RecursionError, AttributeError) as error:
        raise UnreadableError("broken", " ".join(str(error).split())) from None
    body = str(parts["html_body"])
    return re.sub(r"^<main\b|</main>\s*$", lambda tag: tag[0].replace("main", "div"), body)


def _inliner() -> states.Inliner:
    """Reads a role that nobody knows, such as Sphinx's, as code."""
    inliner = states.Inliner()  # not a subclass: its patterns are looked up on the class itself
    known = inliner.interpreted

    def interpreted(
        rawsource: str, text: str, role: str, lineno: int
    ) -> tuple[list[nodes.Node], list[nodes.Node]]:
        found, messages = known(rawsource, text, role, lineno)
        if not any(isinstance(node, nodes.problematic) for node in found):
            return found, messages
        said = utils.unescape(text)
        titled = _TARGET.match(said)
        if titled and titled[1]:
            return [nodes.inline(rawsource, titled[1])], []
        said = said.removeprefix("!")
        said = said.rpartition(".")[2] if said.startswith("~") else said
        plain = role in ("doc", "ref", "term", "numref", "abbr", "guilabel", "menuselection")
        return [(nodes.inline if plain else nodes.literal)(rawsource, said)], []

    inliner.interpreted = interpreted
    return inliner


class _AnyOption(dict[str, Any]):
    """Every option of a directive, unchecked."""

    def __missing__(self, name: str) -> Any:
        return directives.unchanged

    def __bool__(self) -> bool:
        return True


class _Unknown(rst.Directive):  # type: ignore[misc]
    """A directive that docutils does not have: its words count, not what it does."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec = _AnyOption()

    def run(self) -> list[nodes.Node]:
        argument = self.arguments[0].strip() if self.arguments else ""
        if _DROPPED.match(self.name):
            return []
        if _CODE.match(self.name):
            code = "\n".join(self.content)
            classes = ["code", *(f"highlight-{word}" for word in argument.split()[:1])]
            return [nodes.literal_block(code, code, classes=classes)]
        if _DESCRIBED.match(self.name):
            return self._described(argument)
        said = _CHANGED.get(self.name)
        inside = nodes.container()
        if said and argument:
            number, *rest = argument.split(None, 1)
            words = ": ".join([f"{said} {number}", *rest])
            inline, _ = self.state.inline_text(words, self.lineno)
            inside += nodes.paragraph("", "", *inline)
        elif argument and not self.content:
            inline, _ = self.state.inline_text(argument, self.lineno)
            inside += nodes.paragraph("", "", *inline)
        self.state.nested_parse(self.content, self.content_offset, inside)
        return list(inside.children)

    def _described(self, signatures: str) -> list[nodes.Node]:
        """Signatures with their description: what Sphinx writes as a definition list."""
        item = nodes.definition_list_item()
        for line in signatures.splitlines():
            item += nodes.term("", "", nodes.literal("", line.strip()), classes=["sig"])
        text = nodes.definition()
        self.state.nested_parse(self.content, self.content_offset, text)
        item += text
        return [nodes.definition_list("", item)]
