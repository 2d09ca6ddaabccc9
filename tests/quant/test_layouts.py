"""Quantised engines on every layout, against a plain one over the weights that values stand for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from llama.config import EngineConfig, ModelConfig
from llama.engine.build import load_stage, make_cache
from llama.engine.engine import Engine
from llama.engine.sequence import SamplingParams
from llama.parallel.context import ParallelContext, single
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import write_hf
from tests.helpers.quantised import in_memory, rounded
from tests.helpers.ranks import run_layout

LLAMA = tiny_config(
    dim=72, n_heads=6, n_kv_heads=2, head_dim=12, ffn_dim=200, vocab_size=62, attention_bias=True
)
GPT2 = tiny_gpt2_config(dim=72, n_heads=6, n_kv_heads=6, head_dim=12, ffn_dim=200, vocab_size=61)
CONFIGS = {"llama": LLAMA, "gpt2": GPT2}
LAYOUTS = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]
CASES = [
    *[("llama", "int8:32", layout) for layout in LAYOUTS],
    *[("gpt2", "int4:64", layout) for layout in [(1, 1), (3, 1), (2, 2)]],
]
DEAR_CASES = [
    *[("llama", "int4:32", layout) for layout in LAYOUTS],
    *[("gpt2", "int8:64", layout) for layout in LAYOUTS],
]
PROMPT = [1, 17, 42, 9, 3, 54, 8, 8, 23, 57, 5]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, prompt_logprobs=True)
SIZES = {"max_seq_len": 48, "max_batch_size": 4, "block_size": 4}


@cache
def weights_of(model: str) -> dict[str, Tensor]:
    return random_gpt2(GPT2) if model == "gpt2" else random_model(LLAMA)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Llama as Meta's two files, GPT-2 as a Hugging Face folder."""
    llama, gpt2 = tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("gpt2")
    write_meta(llama, LLAMA, weights_of("llama"), n_files=2)
    write_hf(gpt2, GPT2, weights_of("gpt2"))
    return {"llama": str(llama), "gpt2": str(gpt2)}


def facts(engine: Engine) -> dict[str, Any]:
    logits = engine.forward_rows(torch.tensor([PROMPT]), 0)[0]
    result = engine.generate([PROMPT], [GREEDY])[0]
    return {
        "logits": logits.tolist(),
        "tokens": list(result.token_ids),
        "logprobs": list(result.prompt_logprobs or ())[1:],
    }


def job(context: ParallelContext, folder: str, wish: str) -> dict[str, Any]:
    return facts(make_engine(context, folder, quantize=wish, **SIZES))


@cache
def reference(model: str, wish: str) -> dict[str, Any]:
    """A plain engine; the head has rounded weights, and a tied embedding has not."""
    name, _, group_size = wish.partition(":")
    bits = 4 if name == "int4" else 8
    tensors = rounded(weights_of(model), bits=bits, group_size=int(group_size))
    return facts(plain_engine(replace(CONFIGS[model], tied_embeddings=False), tensors))


def plain_engine(model: ModelConfig, tensors: dict[str, Tensor]) -> Engine:
    config, context, dtype = EngineConfig(**SIZES), single(), torch.float32
    reader = in_memory(model, tensors)
    stage, _ = load_stage(reader, config=config, context=context, dtype=dtype)
    return Engine(
        model_config=model,
        config=config,
        context=context,
        stage=stage,
        cache=make_cache(stage, config=config, context=context, dtype=dtype),
        dtype=dtype,
    )


def check(folder: str, model: str, wish: str, layout: tuple[int, int]) -> None:
    want = reference(model, wish)
    for rank, got in enumerate(run_layout(job, folder, wish, tp=layout[0], pp=layout[1])):
        where = f"rank {rank} of {layout}"
        close = {"atol": 1e-4, "rtol": 0.0, "msg": where}
        for name in ("logits", "logprobs"):
            torch.testing.assert_close(torch.tensor(got[name]), torch.tensor(want[name]), **close)
        assert got["tokens"] == want["tokens"], where


@pytest.mark.parametrize(("model", "wish", "layout"), CASES)
def test_every_layout_computes_with_what_the_values_stand_for(
    folders: dict[str, str], model: str, wish: str, layout: tuple[int, int]
) -> None:
    check(folders[model], model, wish, layout)


@pytest.mark.nightly
@pytest.mark.parametrize(("model", "wish", "layout"), DEAR_CASES)
def test_the_same_with_other_groups(
    folders: dict[str, str], model: str, wish: str, layout: tuple[int, int]
) -> None:
    check(folders[model], model, wish, layout)


@pytest.mark.parametrize("layout", [(1, 1), (3, 1)])
def test_rounded_activations_change_logits_by_little(
    folders: dict[str, str], layout: tuple[int, int]
) -> None:
    """A rank rounds what it holds, so groups that ranks share may be rounded otherwise."""
    want = torch.tensor(reference("llama", "int8:32")["logits"])
    got = run_layout(job, folders["llama"], "int8_dynamic:32", tp=layout[0], pp=layout[1])
    for rank in got:
        error = (torch.tensor(rank["logits"]) - want).square().mean().sqrt()
        assert 1e-3 * want.std() < error < 0.1 * want.std()


def test_it_is_not_the_model_before(folders: dict[str, str]) -> None:
    """Else the comparisons above would show nothing."""
    plain = facts(make_engine(single(), folders["llama"], **SIZES))
    ours = reference("llama", "int8:32")
    error = (torch.tensor(plain["logits"]) - torch.tensor(ours["logits"])).abs().max()
    assert error > 1e-2


def test_sixteen_bit_activations(folders: dict[str, str]) -> None:
    engine = make_engine(
        single(), folders["llama"], quantize="int8:32", dtype=torch.bfloat16, **SIZES
    )
    want = torch.tensor(reference("llama", "int8:32")["logits"])
    error = (torch.tensor(facts(engine)["logits"]) - want).abs().max()
    assert error < 0.1 * want.std()
