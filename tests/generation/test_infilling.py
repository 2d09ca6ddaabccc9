"""Meta's `text_infilling`: its signature, its results against the oracle, and what it refuses."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.config import ModelConfig
from llama.errors import UsageError
from llama.generation import Llama, infilling_prompt_tokens
from llama.tokenizer import Tokenizer
from tests.helpers import oracle
from tests.helpers.checkpoints import Weights, random_model, tiny_config, write_meta
from tests.helpers.tokenizers import write_codellama, write_sentencepiece

PREFIXES, SUFFIXES = ["def f(x):", "the quick"], ["  # code", " dog"]
N_BEFORE_EOT = 3


def build(folder: Path, config: ModelConfig, weights: Weights) -> Llama:
    write_meta(folder, config, weights)
    tokenizer_path = str(folder / "tokenizer.model")
    return Llama.build(str(folder), tokenizer_path, max_seq_len=64, max_batch_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codellama")
    write_codellama(folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> ModelConfig:
    return tiny_config(n_kv_heads=2, vocab_size=Tokenizer(folder).n_words)


@pytest.fixture(scope="module")
def answer(folder: Path, config: ModelConfig) -> list[int]:
    """What `random_model` says between the first prefix and suffix, as long as it is let."""
    prompt = infilling_prompt_tokens(Tokenizer(folder), PREFIXES[0], SUFFIXES[0])
    return oracle.greedy(config, random_model(config), prompt, 8)


@pytest.fixture(scope="module")
def llama(folder: Path, config: ModelConfig, answer: list[int]) -> Llama:
    """A model that says EOT instead of the fourth token of `answer`."""
    weights = random_model(config)
    eot_id = Tokenizer(folder).eot_id
    assert eot_id is not None and eot_id not in answer
    assert answer[N_BEFORE_EOT] not in answer[:N_BEFORE_EOT]
    swapped = torch.arange(config.vocab_size)
    swapped[[eot_id, answer[N_BEFORE_EOT]]] = torch.tensor([answer[N_BEFORE_EOT], eot_id])
    return build(folder, config, {**weights, "output.weight": weights["output.weight"][swapped]})


def test_the_signature_is_metas() -> None:
    parameters = inspect.signature(Llama.text_infilling).parameters.values()
    assert [(p.name, p.default) for p in parameters][3:] == [
        ("temperature", 0.6),
        ("top_p", 0.9),
        ("max_gen_len", None),
        ("logprobs", False),
        ("suffix_first", False),
    ]
    assert [p.name for p in parameters][:3] == ["self", "prefixes", "suffixes"]
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def test_the_middle_ends_before_eot(llama: Llama, answer: list[int]) -> None:
    tokenizer: Any = llama.tokenizer
    found = llama.text_infilling(PREFIXES, SUFFIXES, temperature=0, logprobs=True)
    middle = tokenizer.decode_infilling(answer[:N_BEFORE_EOT])
    assert set(found[0]) == {"generation", "full_text", "tokens", "logprobs"}
    assert found[0]["generation"] == middle
    assert found[0]["full_text"] == PREFIXES[0] + middle + SUFFIXES[0]
    assert found[0]["tokens"] == [tokenizer.token_piece(i) for i in answer[:N_BEFORE_EOT]]
    assert len(found[0]["logprobs"]) == N_BEFORE_EOT
    assert found[1]["full_text"].startswith(PREFIXES[1])
    short = llama.text_infilling(PREFIXES, SUFFIXES, temperature=0, max_gen_len=2)
    assert [set(prediction) for prediction in short] == [{"generation", "full_text"}] * 2
    assert short[0]["generation"] == tokenizer.decode_infilling(answer[:2])


def test_the_suffix_may_come_first(llama: Llama) -> None:
    prompt = infilling_prompt_tokens(llama.tokenizer, PREFIXES[0], SUFFIXES[0], suffix_first=True)
    ((ids,), _) = llama.generate([prompt], 3, temperature=0)
    (found,) = llama.text_infilling(
        PREFIXES[:1], SUFFIXES[:1], temperature=0, max_gen_len=3, suffix_first=True
    )
    tokenizer: Any = llama.tokenizer
    assert found["generation"] == tokenizer.decode_infilling(ids)


def test_what_is_no_infilling_is_refused(llama: Llama, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 prefixes for 1 suffixes; give as many of both"):
        llama.text_infilling(PREFIXES, SUFFIXES[:1])
    with pytest.raises(UsageError, match="suffixes must be a list of texts, got one text"):
        llama.text_infilling(PREFIXES, SUFFIXES[0])  # type: ignore[arg-type]
    config = tiny_config(n_layers=1, vocab_size=400)
    write_sentencepiece(tmp_path / "tokenizer.model")
    plain = build(tmp_path, config, random_model(config))
    with pytest.raises(UsageError, match="infilling needs the tokens"):
        plain.text_infilling(PREFIXES, SUFFIXES)
