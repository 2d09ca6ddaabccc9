"""A GPT-2 behind every face: `LLM(folder)`, Meta's names and the commands, with its own limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llama.cli import main
from llama.engine.sequence import SamplingParams
from llama.errors import UsageError
from llama.generation import Llama
from llama.llm import LLM
from tests.helpers.checkpoints import Weights
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import write_hf
from tests.helpers.library_files import write_gpt2
from tests.helpers.megatron_files import write_megatron

N_POSITIONS = 48
N_ROWS = 512
"""As Megatron-LM pads: to a multiple of 128 · tp."""
TEXT = "the meaning of life"
ENDLESS = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in both formats. Rows of padding would win every choice."""
    root = tmp_path_factory.mktemp("gpt2")
    paths = {name: root / name for name in ("hf", "megatron", "padded", "tokenizer")}
    paths["tokenizer"].mkdir()
    n_words = len(json.loads(write_gpt2(paths["tokenizer"]).read_text()))
    assert n_words < N_ROWS - 64
    weights = padded_weights(n_words)
    config = tiny_gpt2_config(vocab_size=N_ROWS, max_positions=N_POSITIONS)
    write_megatron(paths["padded"], config, weights, tp=4, with_args=False)
    (paths["padded"] / "megatron_args.json").write_text('{"num_attention_heads": 4}')
    write_megatron(paths["megatron"], config, weights, pp=3, with_args=False)
    (paths["megatron"] / "megatron_args.json").write_text('{"num_attention_heads": 4}')
    write_gpt2(paths["megatron"], prefix="gpt2-")
    own = {**weights, "tok_embeddings.weight": weights["tok_embeddings.weight"][:n_words]}
    write_hf(paths["hf"], tiny_gpt2_config(vocab_size=n_words, max_positions=N_POSITIONS), own)
    write_gpt2(paths["hf"])
    return paths


def padded_weights(n_words: int) -> Weights:
    config = tiny_gpt2_config(vocab_size=N_ROWS, max_positions=N_POSITIONS)
    weights = random_gpt2(config)
    weights["tok_embeddings.weight"][n_words:].mul_(100)
    return weights


@pytest.fixture(scope="module")
def llm(folders: dict[str, Path]) -> LLM:
    return LLM(folders["hf"], max_batch_size=2)


def test_a_text_may_be_as_long_as_positions_were_learned(llm: LLM) -> None:
    assert llm.engine.config.max_seq_len == N_POSITIONS
    (output,) = llm.generate(TEXT, ENDLESS)
    assert len(output.prompt_token_ids) + len(output.token_ids) == N_POSITIONS
    assert output.finish_reason == "length"


def test_a_length_that_was_asked_for_is_a_limit(folders: dict[str, Path]) -> None:
    assert LLM(folders["hf"], max_seq_len=20).engine.config.max_seq_len == 20
    with pytest.raises(UsageError, match="max_seq_len 49 exceeds the 48 positions"):
        LLM(folders["hf"], max_seq_len=49)


def test_a_text_starts_without_bos_but_an_empty_one_with_it(llm: LLM) -> None:
    end_of_text = llm.tokenizer.bos_id
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    some, empty, same = llm.generate([TEXT, "", [end_of_text]], params)
    assert end_of_text not in some.prompt_token_ids
    assert list(empty.prompt_token_ids) == [end_of_text]
    assert empty.token_ids == same.token_ids
    with pytest.raises(UsageError, match="has an empty prompt"):
        llm.generate([[]], params)


@pytest.mark.parametrize("name", ["megatron", "padded"])
def test_padding_is_neither_drawn_nor_scored_nor_accepted(
    name: str, folders: dict[str, Path], llm: LLM
) -> None:
    """The vocabulary beside Megatron's files tells what padding is, else the tokenizer does."""
    vocabulary = folders["tokenizer"] / "vocab.json" if name == "padded" else None
    other = LLM(folders[name], tokenizer_path=vocabulary, max_batch_size=2)
    n_words = other.tokenizer.n_words
    assert other.model_config.vocab_size == (N_ROWS if name == "padded" else n_words)
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=2)
    (found,), (expected,) = other.generate(TEXT, params), llm.generate(TEXT, params)
    assert found.token_ids == expected.token_ids and found.text == expected.text
    assert found.logprobs is not None and expected.logprobs is not None
    for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    (ours,), (theirs,) = other.score(TEXT), llm.score(TEXT)
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
    with pytest.raises(UsageError, match=f"integers from 0 to {n_words - 1}"):
        other.generate([[1, n_words]], params)


def test_metas_names_serve_it_too(folders: dict[str, Path], llm: LLM) -> None:
    folder = folders["hf"]
    meta = Llama.build(str(folder), str(folder / "vocab.json"), max_seq_len=40, max_batch_size=2)
    (prediction,) = meta.text_completion([TEXT], temperature=0.0, max_gen_len=8, echo=True)
    (output,) = llm.generate(TEXT, SamplingParams(temperature=0.0, max_tokens=8))
    assert prediction["generation"].startswith(TEXT)
    assert prediction["generation"].endswith(output.text)
    names = dict(meta.model.named_parameters())
    assert names["pos_embeddings.weight"].shape == (N_POSITIONS, 32)
    assert meta.model.params.max_seq_len == 40
    logits = meta.model(torch.tensor([output.prompt_token_ids]), 0)
    assert int(logits[0, -1].argmax()) == output.token_ids[0]
    with pytest.raises(UsageError, match="gpt2 learned its positions; it has no freqs_cis"):
        _ = meta.model.freqs_cis
    (begun,) = meta.text_completion([""], temperature=0.0, max_gen_len=4)
    (expected,) = llm.generate("", SamplingParams(temperature=0.0, max_tokens=4))
    assert begun["generation"] == expected.text
    with pytest.raises(UsageError, match="complete text instead"):
        meta.chat_completion([[{"role": "user", "content": "hi"}]])


def test_the_commands_take_its_length(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(folders["hf"])
    assert main(["plan", folder, "--tp", "2", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["max_seq_len"] == N_POSITIONS
    assert main(["generate", folder, TEXT, "--max_tokens", "4", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith(TEXT)
    assert main(["plan", folder, "--max_seq_len", "49"]) == 64
    assert "exceeds the 48 positions" in capsys.readouterr().err


def test_a_chat_with_it_is_refused_before_any_question(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(folders["hf"])]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert "without a known chat format; complete text instead" in line
