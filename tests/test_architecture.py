"""llama/ and launch/ keep the rules of tests/helpers/architecture.py, and every rule can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import architecture as house
from tests.helpers.syntax import Module, read_package

ROOT = Path(__file__).resolve().parent.parent
MODULES = [module for package in ("llama", "launch") for module in read_package(ROOT / package)]

# rule, module that holds the source, source that breaks the rule in that module
VIOLATIONS = [
    ("import_direction", "llama.layers.linear", "import llama.engine.engine"),
    ("import_direction", "llama.layers.linear", "from llama import engine"),
    ("import_direction", "llama.layers.linear", "from ..models import decoder"),
    ("import_direction", "llama.layers.linear", "from .. import server"),
    ("import_direction", "llama.layers.linear", "def f():\n    from llama.llm import LLM"),
    ("import_direction", "llama.layers.linear", "from llama import Llama"),
    ("import_direction", "llama.layers.linear", "TABLE = {'x': 'llama.models.llama:Block'}"),
    (
        "import_direction",
        "llama.layers.linear",
        "import importlib\nimportlib.import_module('llama.llm')",
    ),
    ("import_direction", "llama.engine.engine", "def f():\n    import launch.spawn"),
    ("import_direction", "llama.cli", "from launch import spawn"),
    ("import_direction", "llama.utils", "'''No row of the order has this name.'''"),
    ("strangers", "llama.checkpoint.loading.loader", "from llama.layers.linear import Linear"),
    ("strangers", "llama.layers.linear", "from llama import checkpoint"),
    ("strangers", "llama.engine.scheduler", "def f():\n    import llama.models.decoder"),
    ("strangers", "llama.engine.scheduler", "from llama.model import Transformer"),
    ("strangers", "llama.ops.norm", "from llama.parallel.comm import Communicator"),
    ("strangers", "llama.parallel.comm", "def f():\n    from ..ops.norm import rms_norm"),
    ("torch.distributed", "llama.engine.runner", "import torch.distributed as dist"),
    ("torch.distributed", "llama.engine.runner", "from torch import distributed"),
    ("torch.distributed", "llama.engine.runner", "import torch\ntorch.distributed.barrier()"),
    ("torch.distributed", "launch.spawn", "def f():\n    from torch.distributed import run"),
    ("fairscale", "llama.parallel.comm", "from fairscale.nn import model_parallel"),
    ("fairscale", "llama.parallel.comm", "__import__('fairscale')"),
    ("no_torch", "llama.engine.scheduler", "import torch"),
    ("no_torch", "llama.parallel.layout", "def f():\n    from torch import Tensor"),
    ("file_length", "llama.config", "x = 1\n" * 301),
    ("has_docstring", "llama.config", "x = 1"),
    ("banned_calls", "llama.config", "eval('1')"),
    ("banned_calls", "llama.config", "import builtins\nbuiltins.exec('1')"),
    ("banned_calls", "llama.config", "import pickle as p\np.loads(b'')"),
    ("banned_calls", "llama.config", "from pickle import load\nload(f)"),
    ("banned_calls", "llama.config", "import pickle\npickle.Unpickler(f).load()"),
    ("banned_calls", "llama.config", "import yaml\nyaml.load(f)"),
    ("banned_calls", "llama.config", "import torch\ntorch.load(f)"),
    ("banned_calls", "llama.config", "import torch\ntorch.load(f, weights_only=True)"),
    ("banned_calls", "llama.config", "from torch import load as read\nread(f)"),
    (
        "no_pickle",
        "llama.checkpoint.files.unpickle",
        "import pickle\nclass U(pickle.Unpickler): pass",
    ),
    ("banned_calls", "llama.parallel.comm", "dist.broadcast_object_list(x)"),
    (
        "banned_calls",
        "llama.parallel.comm",
        "from torch.distributed import gather_object as g\ng(x)",
    ),
    ("banned_calls", "launch.spawn", "print('x')"),
]

ALLOWED = [
    ("import_direction", "llama.cli", "def f():\n    from launch import spawn"),
    ("import_direction", "llama.registry", "from llama.errors import UsageError"),
    ("import_direction", "llama", "EXPORTS = {'Llama': 'llama.generation:Llama'}"),
    ("import_direction", "launch.spawn", "import torch\nfrom llama import errors"),
    ("strangers", "llama.checkpoint.loading.loader", "from llama.parallel.shard import Shard"),
    ("strangers", "llama.engine.engine", "from llama.models import decoder"),
    ("torch.distributed", "llama.parallel.comm", "import torch.distributed as dist"),
    ("torch.distributed", "launch.hardware", "from torch.distributed import TCPStore"),
    ("fairscale", "llama.parallel.fairscale", "import fairscale.nn.model_parallel"),
    ("fairscale", "llama.parallel.context", "from llama.parallel import fairscale"),
    ("no_torch", "llama.engine.runner", "import torch"),
    ("file_length", "llama.config", "x = 1\n" * 300),
    ("has_docstring", "llama.config", "'''What it does.'''"),
    ("banned_calls", "llama.config", "model.eval()"),
    ("no_pickle", "llama.checkpoint.files.unpickle", "import pickletools"),
    ("banned_calls", "llama.cli", "print('x')"),
    ("banned_calls", "llama.cli.chat", "print('x')"),
]


@pytest.mark.parametrize("rule", house.RULES)
def test_every_module_keeps_the_rule(rule: str) -> None:
    assert len(MODULES) > 1
    findings = {f"{m.name}, {finding}": None for m in MODULES for finding in house.RULES[rule](m)}
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize(("rule", "name", "source"), VIOLATIONS)
def test_the_rule_finds_the_violation(rule: str, name: str, source: str) -> None:
    assert list(house.RULES[rule](Module.parse(name, source)))


@pytest.mark.parametrize(("rule", "name", "source"), ALLOWED)
def test_the_rule_lets_good_code_pass(rule: str, name: str, source: str) -> None:
    is_package = name == "llama"
    assert not list(house.RULES[rule](Module.parse(name, source, is_package=is_package)))


def test_every_rule_has_a_counterexample() -> None:
    assert {rule for rule, _, _ in VIOLATIONS} == set(house.RULES)


def test_every_folder_of_modules_is_a_package() -> None:
    assert house.missing_packages(MODULES) == set()


def test_a_folder_without_init_is_found() -> None:
    assert house.missing_packages([Module.parse("llama.ops.rope", "")]) == {"llama.ops"}


def test_relative_imports_of_a_package_start_at_itself() -> None:
    package = Module.parse("llama.layers", "from . import linear", is_package=True)
    assert house.module_graph([package, Module.parse("llama.layers.linear", "")]) == {
        "llama.layers": {"llama.layers.linear"},
        "llama.layers.linear": set(),
    }


def test_no_import_cycle_between_modules() -> None:
    assert house.find_cycle(house.module_graph(MODULES)) == []


def test_no_cycle_between_units_even_through_lazy_imports() -> None:
    assert house.find_cycle(house.unit_graph(MODULES)) == []


def test_a_cycle_is_found() -> None:
    top = Module.parse("llama.ops.norm", "from llama.ops.rope import rotate")
    back = Module.parse("llama.ops.rope", "from . import norm")
    lazy_back = Module.parse("llama.ops.rope", "def f():\n    from . import norm")
    assert house.find_cycle(house.module_graph([top, back])) == [
        "llama.ops.norm",
        "llama.ops.rope",
        "llama.ops.norm",
    ]
    assert house.find_cycle(house.module_graph([top, lazy_back])) == []


def test_a_cycle_between_units_is_found() -> None:
    ops = Module.parse("llama.ops.norm", "import llama.quant.base")
    quant = Module.parse("llama.quant.base", "def f():\n    import llama.ops.rope")
    assert house.find_cycle(house.unit_graph([ops, quant])) == ["ops", "quant", "ops"]


@pytest.mark.parametrize("name", house.TORCH_FREE)
def test_importing_the_brain_does_not_reach_torch(name: str) -> None:
    graph = house.module_graph(MODULES)
    assert name in graph
    assert house.find_path(graph, name, "torch") == []


def test_a_path_to_torch_is_found() -> None:
    plan = Module.parse("llama.engine.plan", "from llama.config import ModelConfig")
    config = Module.parse("llama.config", "from torch import Tensor")
    graph = house.module_graph([plan, config])
    assert house.find_path(graph, "llama.engine.plan", "torch") == [
        "llama.engine.plan",
        "llama.config",
        "torch",
    ]


def test_import_llama_leaves_heavy_packages_alone() -> None:
    code = "import sys, llama; print(sorted({'fairscale', 'transformers'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
