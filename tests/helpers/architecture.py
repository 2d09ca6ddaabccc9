"""The house rules that a syntax tree can show: pure functions from modules to findings.

A finding is a line of text. tests/test_architecture.py applies the rules to llama/ and launch/ and
shows for each that it can fail.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator

from tests.helpers.syntax import Module, absolute, aliases, is_in, references

MAX_LINES = 300

# Lower rows know nothing of higher ones. "llama" is the face, llama/__init__.py.
ORDER = (
    ("errors", "log", "registry", "files", "version"),
    ("config",),
    ("native",),
    ("parallel",),
    ("ops", "quant", "tokenizer"),
    ("layers", "kvcache"),
    ("models", "checkpoint"),
    ("engine",),
    ("llm", "generation", "model"),
    ("bench",),
    ("llama",),
    ("server",),
    ("cli", "__main__"),
    ("launch",),
)
RANK = {unit: rank for rank, row in enumerate(ORDER) for unit in row}
STRANGERS = (
    ("llama.checkpoint", "llama.layers"),  # they meet in Shard
    ("llama.engine.scheduler", "llama.models"),  # they meet in BatchPlan
    ("llama.engine.scheduler", "llama.model"),
    ("llama.ops", "llama.parallel"),
)
TORCH_FREE = (
    "llama.parallel.layout",
    "llama.parallel.shard",
    "llama.kvcache.blocks",
    "llama.engine.admission",
    "llama.engine.sequence",
    "llama.engine.plan",
    "llama.engine.scheduler",
)
CONSOLES = ("llama.cli", "launch.__main__")
PROGRAM_RUNNERS = ("launch.fresh",)
"""What runs the user's own program, as `python program` would."""
BANNED_CALLS = {
    "eval": "evaluates text",
    "exec": "evaluates text",
    "pickle.load": "runs what the file says",
    "pickle.loads": "runs what the bytes say",
    "pickle.Unpickler": "runs what the file says",
    "torch.load": "calls what the file names; llama.checkpoint.files.torch_file calls nothing",
    "yaml.load": "builds any object; yaml.safe_load does not",
}
OBJECT_COLLECTIVE = re.compile(r"(all_gather|gather|broadcast|scatter|send|recv)_object(_list)?")

Rule = Callable[[Module], Iterator[str]]
Graph = dict[str, set[str]]


def unit(name: str) -> str | None:
    """The entry of ORDER that a dotted name belongs to; None outside llama and launch."""
    top, _, rest = name.partition(".")
    if top != "llama":
        return top if top == "launch" else None
    second = rest.partition(".")[0]
    return second if second in RANK else "llama"


def import_direction(module: Module) -> Iterator[str]:
    own = unit(module.name) or ""
    if own == "llama" and module.name != "llama":
        yield f"line 1: {module.name} has no place in ORDER"
    for ref in references(module):
        target = unit(ref.name)
        allowed = target is None or RANK[target] <= RANK[own]
        if not allowed and not (own == "cli" and target == "launch" and ref.lazy):
            yield f"line {ref.line}: {own} must not know {target} ({ref.name})"


def strangers(module: Module) -> Iterator[str]:
    for pair in STRANGERS:
        for own, other in (pair, pair[::-1]):
            for ref in references(module):
                if is_in(module.name, own) and is_in(ref.name, other):
                    yield f"line {ref.line}: {own} and {other} must not know each other"


def only_in(homes: tuple[str, ...], package: str) -> Rule:
    """The rule that nothing outside `homes` mentions `package`."""

    def rule(module: Module) -> Iterator[str]:
        if any(is_in(module.name, home) for home in homes):
            return
        for ref in references(module):
            if is_in(ref.name, package):
                yield f"line {ref.line}: only {' and '.join(homes)} may use {package}"

    return rule


def no_torch(module: Module) -> Iterator[str]:
    for ref in references(module):
        if module.name in TORCH_FREE and is_in(ref.name, "torch"):
            yield f"line {ref.line}: {module.name} is torch-free"


def file_length(module: Module) -> Iterator[str]:
    if module.n_lines > MAX_LINES:
        yield f"line {MAX_LINES + 1}: {module.n_lines} lines; split the file by its nouns"


def has_docstring(module: Module) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield "line 1: no module docstring"


def banned_calls(module: Module) -> Iterator[str]:
    table = aliases(module)
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = absolute(node.func, table).removeprefix("builtins.")
        if name == "exec" and module.name in PROGRAM_RUNNERS:
            continue
        if name in BANNED_CALLS:
            yield f"line {node.lineno}: {name} {BANNED_CALLS[name]}"
        elif OBJECT_COLLECTIVE.fullmatch(name.rpartition(".")[2]):
            yield f"line {node.lineno}: {name} pickles; send integers or JSON"
        elif name == "print" and not any(is_in(module.name, console) for console in CONSOLES):
            yield f"line {node.lineno}: print outside a console; use llama.log"


def no_pickle(module: Module) -> Iterator[str]:
    """Not even a subclass of its Unpickler: that one still sets attributes as the file says."""
    for ref in references(module):
        if is_in(ref.name, "pickle"):
            yield f"line {ref.line}: {ref.name}; llama.checkpoint.files.unpickle reads pickles"


RULES: dict[str, Rule] = {
    "import_direction": import_direction,
    "strangers": strangers,
    "torch.distributed": only_in(("llama.parallel", "launch.hardware"), "torch.distributed"),
    "fairscale": only_in(("llama.parallel.fairscale",), "fairscale"),
    "no_torch": no_torch,
    "file_length": file_length,
    "has_docstring": has_docstring,
    "banned_calls": banned_calls,
    "no_pickle": no_pickle,
}


def missing_packages(modules: Iterable[Module]) -> set[str]:
    """Folders of modules without __init__.py, which packaging leaves out."""
    names = {module.name for module in modules}
    return {name.rpartition(".")[0] for name in names if "." in name} - names


def module_graph(modules: Iterable[Module]) -> Graph:
    """Module -> what importing it imports: modules of ours, and "torch"; lazy imports left out."""
    modules = list(modules)
    names = {module.name for module in modules} | {"torch"}
    graph: Graph = {}
    for module in modules:
        targets = {ref.name for ref in references(module) if not ref.lazy}
        known = {name for name in names for target in targets if _imports(target, name, names)}
        graph[module.name] = known - {module.name}
    return graph


def _imports(target: str, name: str, names: set[str]) -> bool:
    if name == "torch":
        return is_in(target, "torch")
    return target == name or (target not in names and target.rpartition(".")[0] == name)


def unit_graph(modules: Iterable[Module]) -> Graph:
    """Unit of ORDER -> the units that it knows, lazily or not; cli -> launch is the exception."""
    graph: Graph = {}
    for module in modules:
        own = unit(module.name) or ""
        known = {unit(ref.name) or own for ref in references(module)} - {own}
        graph.setdefault(own, set()).update(known - ({"launch"} if own == "cli" else set()))
    return graph


def find_path(graph: Graph, start: str, goal: str) -> list[str]:
    """One way of at least one step from `start` to `goal`; empty when there is none."""
    seen: set[str] = set()
    paths = [[start]]
    while paths:
        path = paths.pop()
        for target in sorted(graph.get(path[-1], ())):
            if target == goal:
                return [*path, target]
            if target not in seen:
                seen.add(target)
                paths.append([*path, target])
    return []


def find_cycle(graph: Graph) -> list[str]:
    """One cycle as a path that ends where it began; empty when there is none."""
    return next((cycle for name in sorted(graph) if (cycle := find_path(graph, name, name))), [])
