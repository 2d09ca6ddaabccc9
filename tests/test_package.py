"""`import llama`: quick, complete, and the version that is packaged."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llama

ROOT = Path(__file__).resolve().parent.parent


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'fairscale', 'numpy', 'sentencepiece', 'tiktoken'}"
    code = f"import sys, llama; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_name_of_metas_package_is_at_the_top() -> None:
    metas = {"Llama", "Dialog", "ModelArgs", "Transformer", "Tokenizer"}
    assert metas | {"LLM", "SamplingParams", "RequestOutput", "__version__"} <= set(llama.__all__)


@pytest.mark.parametrize("name", llama.__all__)
def test_every_exported_name_exists(name: str) -> None:
    assert getattr(llama, name) is getattr(llama, name)
    assert name in dir(llama)
    if inspect.isclass(value := getattr(llama, name)) and name != "Dialog":
        assert value.__name__ == name


def test_submodules_need_no_import_of_their_own() -> None:
    assert llama.generation.Llama is llama.Llama
    assert llama.model.Transformer is llama.Transformer
    assert llama.tokenizer.Tokenizer is llama.Tokenizer


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'llama' has no attribute 'LLaMA'"):
        _ = llama.LLaMA


def test_version_is_that_of_setup_py() -> None:
    packaged = re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text())
    assert packaged is not None and packaged[1] == llama.__version__
