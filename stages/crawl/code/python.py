"""A Python file to pages: its module, and each class, function and method that says enough.

Each has a page of its own because it is asked for by its name and cited by its lines: a page per
file would put many into one chunk, of which a citation could name the first one only. What is too
short to be found by itself stands on the page of its class or module.
"""

import ast
import inspect
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from stages.crawl.code import docstring, symbols
from stages.crawl.code.symbols import Symbol
from stages.crawl.files.draft import Draft, fence, one_line
from stages.crawl.page import Page, UnreadableError

OWN_PAGE_LINES = 6
"""Lines of code from which a function without a docstring has a page of its own."""
LONGEST_VALUE = 120
"""Characters of a default or a constant that are shown."""
SHORTEST_PAGE = 80
"""Characters of a module's page; a shorter one says nothing."""

Anchor = Callable[[int, int], str]
"""First and last line to the fragment of an address."""


@dataclass(frozen=True)
class Settings:
    private: bool
    max_source_lines: int


# --- pages -------------------------------------------------------------------------------------


def pages(body: bytes, path: str, url: str, anchor: Anchor, settings: Settings) -> Iterator[Page]:
    """The module's page first; each page's key is its name, which stays when its lines move."""
    text = symbols.decode(body)
    tree = symbols.parsed(text)
    reader = _Reader(text.split("\n"), symbols.module_name(path), path, url, anchor, settings)
    try:
        inside = list(symbols.of(tree.body, "", settings.private))
        found = [*reader.module(tree, inside), *reader.all(inside)]
    except RecursionError as error:  # of a value that goes deeper than `ast` can write it out
        raise UnreadableError("too_complex", one_line(str(error))) from None
    if not found:
        raise UnreadableError("empty", "no docstring, function or class")
    yield from found


@dataclass(frozen=True)
class _Reader:
    lines: Sequence[str]
    name: str
    """Of the module."""
    path: str
    url: str
    anchor: Anchor
    settings: Settings

    def module(self, tree: ast.Module, inside: Sequence[Symbol]) -> Iterator[Page]:
        """Its docstring, its constants, what is too short for a page, and what it runs."""
        draft = Draft()
        draft.heading(1, f"`{self.name}`")
        said = ast.get_docstring(tree)
        if said:
            draft.block(docstring.markdown(said))
        constants = list(self._values(tree.body, constants_only=True))
        if constants:
            draft.block("\n".join(constants))
        small = [symbol for symbol in inside if not self._has_page(symbol)]
        for symbol in small:
            self._below(draft, symbol)
        run = list(self._top_level(tree))
        if run:
            draft.block(fence(self._bounded(run), "python"))
        members = [self._member(symbol) for symbol in inside if self._has_page(symbol)]
        told = said or constants or small or run
        if told and members:
            draft.heading(2, "Contents")
            draft.block("\n".join(members))
        page = draft.page(self.url, self.name)
        if told and len(page.text) >= SHORTEST_PAGE:
            yield self._keyed(page, "")

    def all(self, inside: Iterable[Symbol], within: str = "") -> Iterator[Page]:
        """The pages of these symbols and of those inside, `within` being the key of what they are
        in: what is defined twice, as under `try` and `except`, is told apart by number.
        """
        seen = Counter[str]()
        for symbol in inside:
            if not self._has_page(symbol):
                continue
            seen[symbol.name] += 1
            again = f"#{seen[symbol.name]}" if seen[symbol.name] > 1 else ""
            name = symbol.name.rpartition(".")[2] + again
            key = f"{within}.{name}" if within else name
            yield self._keyed(self._page(symbol), key)
            yield from self.all(symbol.inner, key)

    def _keyed(self, page: Page, name: str) -> Page:
        return replace(page, key=f"{self.path}::{name}")

    def _page(self, symbol: Symbol) -> Page:
        draft = Draft()
        title = f"{self.name}.{symbol.name}"
        place = self.anchor(symbol.first, symbol.last)
        draft.heading(1, f"`{title}`", place)
        self._told(draft, symbol)
        if isinstance(symbol.main, ast.ClassDef):
            values = list(self._values(symbol.main.body, constants_only=False))
            if values:
                draft.block("\n".join(values))
            small = [inner for inner in symbol.inner if not self._has_page(inner)]
            for inner in small:
                if not inner.name.endswith(".__init__"):
                    self._below(draft, inner)
            members = [self._member(inner) for inner in symbol.inner if self._has_page(inner)]
            if members:
                draft.heading(2, "Methods", place)
                draft.block("\n".join(members))
        else:
            draft.block(fence(self._source(symbol), "python"))
        return draft.page(f"{self.url}#{place}", title)

    def _told(self, draft: Draft, symbol: Symbol) -> None:
        """Its signatures and its docstring."""
        for signature in self._signatures(symbol):
            draft.block(f"`{signature}`")
        draft.block(symbol.doc)
        if isinstance(symbol.main, ast.ClassDef):
            starts = [inner for inner in symbol.inner if inner.name == f"{symbol.name}.__init__"]
            for start in starts:
                if not self._has_page(start):
                    draft.block(start.doc)

    def _below(self, draft: Draft, symbol: Symbol) -> None:
        """On the page of its class or module."""
        place = self.anchor(symbol.first, symbol.last)
        draft.heading(2, f"`{symbol.name.rpartition('.')[2]}`", place)
        self._told(draft, symbol)
        draft.block(fence(self._source(symbol), "python"))

    def _has_page(self, symbol: Symbol) -> bool:
        if isinstance(symbol.main, ast.ClassDef) and symbol.inner:
            return True
        if symbol.name.endswith(".__init__") and len(symbol.doc) < SHORTEST_PAGE:
            return False
        # A word is no documentation, and a page of it is found by nobody.
        return len(symbol.doc) >= SHORTEST_PAGE or symbol.last - symbol.first >= OWN_PAGE_LINES

    def _member(self, symbol: Symbol) -> str:
        """A line of the contents: the signature and the docstring's first sentence."""
        signature = self._signatures(symbol)[-1]
        first = symbol.doc.partition("\n\n")[0]
        first = re.split(r"(?<=[.!?])\s", one_line(first), maxsplit=1)[0]
        return f"- `{signature}`" + (f": {first}" if first and "```" not in first else "")

    def _signatures(self, symbol: Symbol) -> list[str]:
        if isinstance(symbol.main, ast.ClassDef):
            return [self._of_class(symbol)]
        chosen = [node for node in symbol.nodes if not isinstance(node, ast.ClassDef)]
        if symbol.is_property:
            return [f"@property {symbols.signature(chosen[0], symbol.name)}"]
        overloads = [node for node in chosen if "overload" in symbols.decorators(node)]
        return [symbols.signature(node, symbol.name) for node in overloads or chosen[-1:]]

    def _of_class(self, symbol: Symbol) -> str:
        node = symbol.main
        assert isinstance(node, ast.ClassDef)
        bases = ", ".join(ast.unparse(base) for base in (*node.bases, *node.keywords))
        head = f"class {symbol.name}" + (f"({bases})" if bases else "")
        marks = [f"@{word} " for word in symbols.decorators(node) if "dataclass" in word]
        start = next((s for s in symbol.inner if s.name == f"{symbol.name}.__init__"), None)
        if start and not isinstance(start.main, ast.ClassDef):
            arguments = symbols.arguments(start.main, bound=True)
            return f"{''.join(marks)}{head}: {symbol.name.rpartition('.')[2]}({arguments})"
        return f"{''.join(marks)}{head}"

    def _source(self, symbol: Symbol) -> str:
        """Its lines without its docstring, which is told already."""
        cut: set[int] = set()
        for node in symbol.nodes:
            first = node.body[0]
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                cut.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
        numbers = range(symbol.first, symbol.last + 1)
        return self._bounded([self.lines[n - 1] for n in numbers if n not in cut])

    def _bounded(self, lines: Sequence[str]) -> str:
        shown = inspect.cleandoc("\n" + "\n".join(lines[: self.settings.max_source_lines]))
        more = len(lines) - self.settings.max_source_lines
        return f"{shown}\n# … {more} more lines" if more > 0 else shown

    def _values(self, body: Iterable[ast.stmt], constants_only: bool) -> Iterator[str]:
        """Fields, members of an enumeration and constants, with what is said of each."""
        nodes = list(symbols.statements(body))
        for node, after in itertools.pairwise([*nodes, None]):
            match node:
                case ast.AnnAssign(target=ast.Name(id=name)):
                    kind = f": {ast.unparse(node.annotation)}"
                case ast.Assign(targets=[ast.Name(id=name)]):
                    kind = ""
                case _:
                    continue
            if (symbols.is_private(name) and not self.settings.private) or name.startswith("__"):
                continue
            said = self._said_of(node, after)
            value = one_line(ast.unparse(node.value)) if node.value is not None else ""
            if constants_only and not said and not (name.isupper() and value):
                continue
            shown = f"{name}{kind}" + (f" = {_cut(value)}" if value else "")
            yield f"- `{shown}`" + (f": {said}" if said else "")

    def _said_of(self, node: ast.stmt, after: ast.stmt | None) -> str:
        """A string below it, or a comment `#:` above it or behind it."""
        match after:
            case ast.Expr(value=ast.Constant(value=str(text))):
                return one_line(inspect.cleandoc(text))
        above = []
        for line in reversed(self.lines[: node.lineno - 1]):
            if not line.strip().startswith("#:"):
                break
            above.append(line.strip()[2:].strip())
        if above:
            return one_line(" ".join(reversed(above)))
        behind = self.lines[(node.end_lineno or node.lineno) - 1]
        _, sign, text = behind[node.end_col_offset or 0 :].partition("#:")
        return one_line(text) if sign else ""

    def _top_level(self, tree: ast.Module) -> Iterator[str]:
        """The lines that the module runs: an example's whole story."""
        for node in tree.body:
            match node:
                case (
                    ast.Import()
                    | ast.ImportFrom()
                    | ast.ClassDef()
                    | ast.FunctionDef()
                    | ast.AsyncFunctionDef()
                    | ast.Assign()
                    | ast.AnnAssign()
                    | ast.Try()
                    | ast.Pass()
                ):
                    continue
                case ast.Expr(value=ast.Constant()):
                    continue
                case ast.If(test=ast.Name() | ast.Attribute()):
                    continue  # TYPE_CHECKING
            yield from self.lines[node.lineno - 1 : node.end_lineno]


def _cut(value: str) -> str:
    return value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]}…"
