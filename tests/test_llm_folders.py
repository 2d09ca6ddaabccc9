"""`LLM(folder)` needs nothing but the folder, in every format and with every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama.config import ModelConfig, RopeScaling
from llama.engine.sequence import SamplingParams
from llama.llm import LLM
from llama.parallel.context import ParallelContext
from tests.helpers import oracle
from tests.helpers.checkpoints import Weights, random_model, tiny_config
from tests.helpers.dcp_files import write_dcp
from tests.helpers.hf_files import write_hf
from tests.helpers.library_files import write_gpt2, write_llama2_json, write_llama3_json
from tests.helpers.megatron_files import write_megatron
from tests.helpers.mistral_files import write_mistral
from tests.helpers.ranks import run_layout
from tests.helpers.tokenizers import write_sentencepiece

TEXT = "the meaning of </s> life"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
# The vocabularies of LLAMA2 and DCP are padded.
LLAMA2 = tiny_config(vocab_size=512, rope_style="half")
LINEAR = tiny_config(
    vocab_size=500, rope_style="half", rope_scaling=RopeScaling(factor=2.0, kind="linear")
)
LLAMA3 = tiny_config(vocab_size=407, n_kv_heads=2, rope_style="half", tied_embeddings=True)
MISTRAL = tiny_config(vocab_size=400, n_kv_heads=2, sliding_window=64)
MEGATRON = tiny_config(vocab_size=400, rope_style="half")
DCP = tiny_config(vocab_size=450)

Write = Callable[[Path, ModelConfig, Weights], object]


def hf(folder: Path, config: ModelConfig, weights: Weights) -> None:
    # Our weights rotate halves already.
    write_hf(folder, config, weights, n_shards=2, is_half=True)


def megatron(folder: Path, config: ModelConfig, weights: Weights) -> None:
    write_megatron(folder, config, weights, tp=2, names="core")


def v3(folder: Path) -> None:
    write_sentencepiece(folder / "tokenizer.model.v3")


CASES: dict[str, tuple[Write, ModelConfig, Callable[[Path], object]]] = {
    "hf-llama2": (hf, LLAMA2, write_llama2_json),
    "hf-linear": (hf, LINEAR, write_llama2_json),
    "hf-llama3-tied": (hf, LLAMA3, write_llama3_json),
    "mistral": (write_mistral, MISTRAL, v3),
    "dcp": (write_dcp, DCP, lambda folder: write_sentencepiece(folder / "tokenizer.model")),
    "megatron": (megatron, MEGATRON, lambda folder: write_gpt2(folder, prefix="gpt2-")),
}


def answers_as_the_oracle(
    context: ParallelContext, folder: str, config: ModelConfig, weights: Weights
) -> bool:
    llm = LLM(folder, tp=context.tp.size, pp=context.pp.size, max_seq_len=64, max_batch_size=2)
    (output,) = llm.generate([TEXT], GREEDY)
    prompt = llm.tokenizer.encode(TEXT, llm.tokenizer.adds_bos, False)
    head = weights["output.weight"].clone()
    head[llm.tokenizer.n_words :] = 0  # rows of padding are never drawn, whatever is in them
    expected = oracle.greedy(config, {**weights, "output.weight": head}, prompt, 12)
    return list(output.token_ids) == expected


@pytest.mark.parametrize(
    ("case", "tp", "pp"),
    [*((case, 1, 1) for case in CASES), ("hf-llama3-tied", 3, 1), ("hf-llama2", 1, 2)],
)
def test_a_folder_is_enough(tmp_path: Path, case: str, tp: int, pp: int) -> None:
    write, config, write_tokenizer = CASES[case]
    weights = random_model(config)
    folder = tmp_path / "model"
    write(folder, config, weights)
    write_tokenizer(folder)
    assert all(run_layout(answers_as_the_oracle, str(folder), config, weights, tp=tp, pp=pp))
