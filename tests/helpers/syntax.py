"""What a Python file mentions, read from its syntax tree without importing it.

It knows imports, relative and lazy ones too, attribute chains on imported names, and the
"module:attribute" strings of registries. It does not know which of them are allowed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

IMPORT_FUNCTIONS = ("importlib.import_module", "__import__")
REGISTRY_STRING = re.compile(r"((?:llama|launch)(?:\.\w+)*):\w+")


@dataclass(frozen=True)
class Module:
    name: str
    tree: ast.Module
    n_lines: int
    is_package: bool = False

    @classmethod
    def parse(cls, name: str, source: str, *, is_package: bool = False) -> Module:
        return cls(name, ast.parse(source), len(source.splitlines()), is_package)


@dataclass(frozen=True)
class Reference:
    """A module, or a name in one, that some line mentions; `lazy` when not at import time."""

    name: str
    line: int
    lazy: bool


def read_package(directory: Path) -> Iterator[Module]:
    """Every module below `directory`, a top-level package."""
    for path in sorted(directory.rglob("*.py")):
        parts = path.relative_to(directory.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        yield Module.parse(name, path.read_text(encoding="utf-8"), is_package=is_package)


def is_in(name: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or lies below it."""
    return name == prefix or name.startswith(prefix + ".")


def aliases(module: Module) -> dict[str, str]:
    """Local name -> absolute dotted name, for every import in the file."""
    table = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                table[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            base = _import_base(node, module)
            table.update(
                {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
            )
    return table


def absolute(node: ast.expr, table: dict[str, str]) -> str:
    """`a.b.c` with its first name looked up in `table`; "" for what is no plain chain of names."""
    if isinstance(node, ast.Name):
        return table.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := absolute(node.value, table)):
        return f"{owner}.{node.attr}"
    return ""


def references(module: Module) -> Iterator[Reference]:
    """Everything that `module` mentions, in the order of the file."""
    table = aliases(module)

    def visit(parent: ast.AST, inside: bool) -> Iterator[Reference]:
        for node in ast.iter_child_nodes(parent):
            deferred = inside or isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            )
            lazy = deferred or isinstance(node, ast.Constant)
            line = getattr(node, "lineno", 0)
            yield from (Reference(name, line, lazy) for name in _named_by(node, module, table))
            yield from visit(node, deferred)

    return visit(module.tree, False)


def _import_base(node: ast.ImportFrom, module: Module) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    package = package[: len(package) - node.level + module.is_package]
    return ".".join([*package, *([node.module] if node.module else [])])


def _named_by(node: ast.AST, module: Module, table: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{_import_base(node, module)}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute):
        name = absolute(node, table)
        if name.partition(".")[0] in {value.partition(".")[0] for value in table.values()}:
            yield name
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        match = REGISTRY_STRING.fullmatch(node.value)
        yield from [match[1]] if match else []
    elif isinstance(node, ast.Call) and absolute(node.func, table) in IMPORT_FUNCTIONS:
        texts = (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))
        yield from (text for text in texts if isinstance(text, str))
