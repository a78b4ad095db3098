"""The classes, functions and methods of a Python file by `ast`; nothing of it is imported."""

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from stages.crawl.code import docstring
from stages.crawl.files.draft import one_line
from stages.crawl.page import UnreadableError

Function = ast.FunctionDef | ast.AsyncFunctionDef


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


def decode(body: bytes) -> str:
    """The text in the encoding that the file declares, UTF-8 where it declares none."""
    if b"\0" in body:
        raise UnreadableError("binary", "not a text")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(body).readline)
        text = body.decode(encoding)
    except (SyntaxError, UnicodeError, LookupError) as error:
        raise UnreadableError("bad_encoding", one_line(str(error))) from None
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", " ")


def module_name(path: str) -> str:
    parts = list(PurePosixPath(path).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    if len(parts) > 1 and parts[0] == "src":
        parts.pop(0)
    return ".".join(parts) or PurePosixPath(path).stem


def parsed(text: str) -> ast.Module:
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


def of(body: Iterable[ast.stmt], within: str, private: bool) -> Iterator[Symbol]:
    """Classes and functions in their order; those of one name that go together are one."""
    groups: dict[str, Symbol] = {}
    order: list[Symbol] = []
    for node in statements(body):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not private and is_private(node.name):
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
            symbol.inner = list(of(node.body, name, private))
    yield from order


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module or class, also those under `if` and `try`."""
    for node in body:
        match node:
            case ast.If():
                yield from statements([*node.body, *node.orelse])
            case ast.Try() | ast.TryStar():
                handlers = [inner for handler in node.handlers for inner in handler.body]
                yield from statements([*node.body, *handlers, *node.orelse, *node.finalbody])
            case ast.With():
                yield from statements(node.body)
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


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


# --- signatures --------------------------------------------------------------------------------


def decorators(node: ast.ClassDef | Function) -> list[str]:
    return [ast.unparse(word).split("(")[0].split(".")[-1] for word in node.decorator_list]


def signature(node: Function, name: str) -> str:
    words = "async def " if isinstance(node, ast.AsyncFunctionDef) else ""
    marks = [f"@{w} " for w in decorators(node) if w in ("classmethod", "staticmethod")]
    bound = "." in name and "staticmethod" not in decorators(node)
    returns = f" -> {one_line(ast.unparse(node.returns))}" if node.returns else ""
    return f"{''.join(marks)}{words}{name}({arguments(node, bound)}){returns}"


def arguments(node: Function, bound: bool) -> str:
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
