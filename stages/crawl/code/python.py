"""A Python file to pages: its module, and each class, function and method that says enough.

Each has a page of its own because it is asked for by its name and cited by its lines: a page per
file would put many into one chunk, of which a citation could name the first one only. What is too
short to be found by itself stands on the page of its class or module.
"""

import ast
import inspect
import io
import itertools
import re
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from stages.crawl.code import docstring
from stages.crawl.files.draft import Draft, fence, one_line
from stages.crawl.page import Page, UnreadableError

OWN_PAGE_LINES = 6
"""Lines of code from which a function without a docstring has a page of its own."""
LONGEST_VALUE = 120
"""Characters of a default or a constant that are shown."""
SHORTEST_PAGE = 80
"""Characters of a module's page; a shorter one says nothing."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Anchor = Callable[[int, int], str]
"""First and last line to the fragment of an address."""


@dataclass
class Symbol:
    """A class, or a function with its overloads or with a property's setter."""

    name: str
    """With its class's, without the module's."""
    nodes: list[ast.ClassDef | Function]
    inner: list["Symbol"] = field(default_factory=list)

    @property
    def main(self) -> ast.ClassDef | Function:
        """What has the docstring: a property's getter, or the last of the overloads."""
        last = self.nodes[-1]
        if isinstance(last, ast.ClassDef) or not self.is_property:
            return last
        return self.nodes[0]

    @property
    def is_property(self) -> bool:
        return any(
            word.split(".")[-1] in ("property", "cached_property")
            for node in self.nodes
            for word in map(ast.unparse, node.decorator_list)
        )

    @property
    def first(self) -> int:
        """Its first line, decorators included."""
        node = self.nodes[0]
        return min([node.lineno, *(word.lineno for word in node.decorator_list)])

    @property
    def last(self) -> int:
        return max(node.end_lineno or node.lineno for node in self.nodes)

    @property
    def doc(self) -> str:
        own = ast.get_docstring(self.main)
        found = own or next(filter(None, map(ast.get_docstring, self.nodes)), None)
        return docstring.markdown(found) if found else ""


@dataclass(frozen=True)
class Settings:
    private: bool
    max_source_lines: int


def pages(body: bytes, path: str, url: str, anchor: Anchor, settings: Settings) -> Iterator[Page]:
    """The module's page first; each page's key is its name, which stays when its lines move."""
    text = decode(body)
    tree = _parsed(text)
    reader = _Reader(text.split("\n"), module_name(path), path, url, anchor, settings)
    symbols = list(_symbols(tree.body, "", settings.private))
    found = [*reader.module(tree, symbols), *reader.all(symbols)]
    if not found:
        raise UnreadableError("empty", "no docstring, function or class")
    yield from found


def decode(body: bytes) -> str:
    """The text in the encoding that the file declares, UTF-8 where it declares none."""
    if b"\0" in body:
        raise UnreadableError("binary", "not a text")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(body).readline)
        text = body.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise UnreadableError("bad_encoding", one_line(str(error))) from None
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", " ")


def module_name(path: str) -> str:
    parts = list(PurePosixPath(path).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    if len(parts) > 1 and parts[0] == "src":
        parts.pop(0)
    return ".".join(parts) or PurePosixPath(path).stem


def _parsed(text: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape that is none: the author's concern
            return ast.parse(text)
    except SyntaxError as error:
        said = f"line {error.lineno}: {error.msg}"
        old = re.search(r"parentheses in call to '(?:print|exec)'|multiple exception types", said)
        python_2 = old or re.search(r"(?m)^\s*(?:print\s+[\"'\w]|except \w+, \w+:)", text)
        raise UnreadableError("python_2" if python_2 else "syntax_error", said) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UnreadableError("too_complex", one_line(str(error))) from None


# --- symbols -----------------------------------------------------------------------------------


def _symbols(body: Iterable[ast.stmt], within: str, private: bool) -> Iterator[Symbol]:
    """Classes and functions in their order; those of one name that go together are one."""
    groups: dict[str, Symbol] = {}
    order: list[Symbol] = []
    for node in _statements(body):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not private and _is_private(node.name):
            continue
        name = f"{within}.{node.name}" if within else node.name
        before = groups.get(name)
        if before is not None and not isinstance(node, ast.ClassDef) and _belongs(before, node):
            before.nodes.append(node)
            continue
        symbol = Symbol(name, [node])
        groups[name] = symbol
        order.append(symbol)
        if isinstance(node, ast.ClassDef):
            symbol.inner = list(_symbols(node.body, name, private))
    yield from order


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module or class, also those under `if` and `try`."""
    for node in body:
        match node:
            case ast.If():
                yield from _statements([*node.body, *node.orelse])
            case ast.Try() | ast.TryStar():
                handlers = [inner for handler in node.handlers for inner in handler.body]
                yield from _statements([*node.body, *handlers, *node.orelse, *node.finalbody])
            case ast.With():
                yield from _statements(node.body)
            case _:
                yield node


def _belongs(before: Symbol, node: Function) -> bool:
    """Whether it is an overload's next one, or a setter to its property."""
    words = list(map(ast.unparse, node.decorator_list))
    name = before.name.rpartition(".")[2]
    if any(word.startswith(f"{name}.") for word in words):
        return True
    last = before.nodes[-1]
    return any(ast.unparse(w).split(".")[-1] == "overload" for w in last.decorator_list)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


# --- pages -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    lines: Sequence[str]
    name: str
    """Of the module."""
    path: str
    url: str
    anchor: Anchor
    settings: Settings

    def module(self, tree: ast.Module, symbols: Sequence[Symbol]) -> Iterator[Page]:
        """Its docstring, its constants, what is too short for a page, and what it runs."""
        draft = Draft()
        draft.heading(1, f"`{self.name}`")
        said = ast.get_docstring(tree)
        if said:
            draft.block(docstring.markdown(said))
        constants = list(self._values(tree.body, constants_only=True))
        if constants:
            draft.block("\n".join(constants))
        small = [symbol for symbol in symbols if not self._has_page(symbol)]
        for symbol in small:
            self._below(draft, symbol)
        run = list(self._top_level(tree))
        if run:
            draft.block(fence(self._bounded(run), "python"))
        members = [self._member(symbol) for symbol in symbols if self._has_page(symbol)]
        told = said or constants or small or run
        if told and members:
            draft.heading(2, "Contents")
            draft.block("\n".join(members))
        page = draft.page(self.url, self.name)
        if told and len(page.text) >= SHORTEST_PAGE:
            yield self._keyed(page, "")

    def all(self, symbols: Iterable[Symbol]) -> Iterator[Page]:
        seen: dict[str, int] = {}
        for symbol in symbols:
            if not self._has_page(symbol):
                continue
            times = seen[symbol.name] = seen.get(symbol.name, 0) + 1
            yield self._page(symbol, times)
            yield from self.all(symbol.inner)

    def _keyed(self, page: Page, name: str) -> Page:
        return Page(page.url, page.title, page.text, page.headings, key=f"{self.path}::{name}")

    def _page(self, symbol: Symbol, times: int) -> Page:
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
        again = f"#{times}" if times > 1 else ""
        return self._keyed(draft.page(f"{self.url}#{place}", title), f"{symbol.name}{again}")

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
            return [f"@property {_signature(chosen[0], symbol.name)}"]
        overloads = [node for node in chosen if "overload" in _decorators(node)]
        return [_signature(node, symbol.name) for node in overloads or chosen[-1:]]

    def _of_class(self, symbol: Symbol) -> str:
        node = symbol.main
        assert isinstance(node, ast.ClassDef)
        bases = ", ".join(ast.unparse(base) for base in (*node.bases, *node.keywords))
        head = f"class {symbol.name}" + (f"({bases})" if bases else "")
        marks = [f"@{word} " for word in _decorators(node) if "dataclass" in word]
        start = next((s for s in symbol.inner if s.name == f"{symbol.name}.__init__"), None)
        if start and not isinstance(start.main, ast.ClassDef):
            arguments = _arguments(start.main, bound=True)
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
        nodes = list(_statements(body))
        for node, after in itertools.pairwise([*nodes, None]):
            match node:
                case ast.AnnAssign(target=ast.Name(id=name)):
                    kind = f": {ast.unparse(node.annotation)}"
                case ast.Assign(targets=[ast.Name(id=name)]):
                    kind = ""
                case _:
                    continue
            if (_is_private(name) and not self.settings.private) or name.startswith("__"):
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


def _decorators(node: ast.ClassDef | Function) -> list[str]:
    return [ast.unparse(word).split("(")[0].split(".")[-1] for word in node.decorator_list]


def _signature(node: Function, name: str) -> str:
    words = "async def " if isinstance(node, ast.AsyncFunctionDef) else ""
    marks = [f"@{w} " for w in _decorators(node) if w in ("classmethod", "staticmethod")]
    bound = "." in name and "staticmethod" not in _decorators(node)
    returns = f" -> {one_line(ast.unparse(node.returns))}" if node.returns else ""
    return f"{''.join(marks)}{words}{name}({_arguments(node, bound)}){returns}"


def _arguments(node: Function, bound: bool) -> str:
    """As they are written, without the object or class that a method is bound to."""
    said = node.args
    positional = [*said.posonlyargs, *said.args]
    if bound and positional and positional[0].arg in ("self", "cls"):
        first = positional[0]
        said = ast.arguments(
            posonlyargs=[arg for arg in said.posonlyargs if arg is not first],
            args=[arg for arg in said.args if arg is not first],
            vararg=said.vararg,
            kwonlyargs=said.kwonlyargs,
            kw_defaults=said.kw_defaults,
            kwarg=said.kwarg,
            defaults=said.defaults,
        )
    return one_line(ast.unparse(said))


def _cut(value: str) -> str:
    return value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]}…"
