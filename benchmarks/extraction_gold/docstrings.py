"""Names in an installed package to the docstrings that Sphinx's autodoc brings into a page.

The code is read and never run. A name that its text alone does not settle (made by a factory, or
at run time) has no docstring here.
"""

import ast
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_IMPORTS = 8
"""Through how many modules a name is followed."""

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Docstrings:
    folder: Path
    """Where packages are installed."""

    def of_module(self, module: str) -> str:
        tree = self._tree(module)
        return (ast.get_docstring(tree) or "") if tree is not None else ""

    def of(self, module: str, name: str) -> list[str]:
        """Of a class or function, as a module names it; a class's with those of its members and of
        its bases."""
        return [text for _, node in self._with_bases(module, name) for text in _within(node)]

    def _with_bases(
        self, module: str, name: str, depth: int = 0
    ) -> Iterator[tuple[str, Definition]]:
        found = self._resolved(module, name)
        if found is None or depth > MAX_IMPORTS:
            return
        yield found
        where, node = found
        for base in node.bases if isinstance(node, ast.ClassDef) else ():
            yield from self._with_bases(where, ast.unparse(base), depth + 1)

    def _resolved(self, module: str, name: str, depth: int = 0) -> tuple[str, Definition] | None:
        tree = self._tree(module)
        if depth > MAX_IMPORTS:
            return None
        if tree is None:  # a whole name may have been given
            above, _, last = module.rpartition(".")
            return self._resolved(above, f"{last}.{name}", depth + 1) if above else None
        first, _, rest = name.partition(".")
        for node in tree.body:
            if isinstance(node, Definition) and node.name == first:
                inner = [part for part in node.body if isinstance(part, Definition)]
                if not rest:
                    return module, node
                return next(((module, part) for part in inner if part.name == rest), None)
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == first:
                        source = self._imported(module, node)
                        if rest:
                            return self._resolved(f"{source}.{alias.name}", rest, depth + 1)
                        return self._resolved(source, alias.name, depth + 1)
        return None

    def _imported(self, module: str, node: ast.ImportFrom) -> str:
        """The module that a name comes from."""
        parts = module.split(".")
        is_package = (self.folder.joinpath(*parts) / "__init__.py").is_file()
        kept = len(parts) - node.level + is_package if node.level else 0
        return ".".join([*parts[:kept], *([node.module] if node.module else [])])

    def _tree(self, module: str) -> ast.Module | None:
        path = self.folder.joinpath(*module.split("."))
        return _read(path / "__init__.py") or _read(path.with_suffix(".py"))


@functools.cache
def _read(path: Path) -> ast.Module | None:
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def _within(node: ast.AST) -> Iterator[str]:
    """Its docstring, its members' and those below attributes."""
    for inner in ast.walk(node):
        text = inner.value if isinstance(inner, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield inspect.cleandoc(text.value)
