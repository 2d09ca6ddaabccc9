"""The outside oracle: the engine gives the answers that transformers gives, on every layout.

Models are made, saved and asked by transformers; every weight is random, norms and biases too, and
the logits are spread far enough that no greedy choice is a matter of rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llama.errors import UnknownNameError, UsageError
from llama.parallel.context import single
from tests.helpers.answers import Answer, answers
from tests.helpers.engines import make_engine
from tests.helpers.ranks import run_layout

PROMPT = [1, 17, 42, 88, 3, 64, 8, 8, 23, 77, 5, 31, 90, 2, 55, 13, 70, 29, 9, 46]
N_GREEDY = 32
LEAST_MARGIN = 1e-3
# Three ranks share 6 heads, but neither the 2 KV heads nor the FFN nor the vocabulary evenly.
SIZES = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 100, "vocab_size": 97, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
# The original context is short, so that each of the three bands of wavelengths is met.
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
SEVERAL = {
    "attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True,
    "rope_parameters": LLAMA3,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mha": ("Llama", {"num_key_value_heads": 6}),
    "gqa": ("Llama", {}),
    "gqa in shards": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "attention bias": ("Llama", {"attention_bias": True}),
    "mlp bias": ("Llama", {"mlp_bias": True}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "head_dim of its own": ("Llama", {"head_dim": 12}),
    "rope llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "rope linear": ("Llama", {"rope_parameters": LINEAR}),
    "several at once": ("Llama", SEVERAL),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral with a wide window": ("Mistral", {"sliding_window": 200, "head_dim": 12}),
}
ON_RANKS = ("gqa in shards", "several at once", "mistral")
SHARD_SIZES = {"gqa in shards": "100KB"}
GPT2 = {
    "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 97, "n_positions": 64,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def random_init(family: str, values: dict[str, Any], *, seed: int) -> Any:
    """A float32 model of transformers in which nothing is left as 0 or 1."""
    config = getattr(transformers, f"{family}Config")(**SIZES | values)
    made = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            is_vocabulary = name.startswith(("lm_head", "model.embed_tokens"))
            parameter.normal_(std=1.0 if is_vocabulary else 0.3, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1.0)
    return made


@torch.inference_mode()
def answer_of_transformers(model: Any) -> Answer:
    prompt = torch.tensor([PROMPT])
    logits = model(prompt).logits[0]
    generated = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=N_GREEDY,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best, second = torch.cat(generated.logits).topk(2).values.T
    assert (best - second).min() > LEAST_MARGIN, "rounding could decide: take another seed"
    return Answer(logits, generated.sequences[0, len(PROMPT) :].tolist())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: str(tmp_path_factory.mktemp("model")) for name in MODELS}


@pytest.fixture(scope="module")
def expected(folders: dict[str, str]) -> dict[str, Answer]:
    """What transformers answers; afterwards every model is in its folder."""
    found = {}
    for seed, (name, (family, values)) in enumerate(MODELS.items()):
        model = random_init(family, values, seed=seed)
        model.save_pretrained(folders[name], max_shard_size=SHARD_SIZES.get(name, "5GB"))
        found[name] = answer_of_transformers(model)
    return found


def check(got: Answer, want: Answer, *, where: str) -> None:
    torch.testing.assert_close(
        got.logits, want.logits, atol=1e-4, rtol=0, msg=lambda text: f"{where}: {text}"
    )
    assert len(want.token_ids) == N_GREEDY
    assert got.token_ids == want.token_ids, where


@pytest.mark.parametrize("model", MODELS)
def test_one_process_answers_as_transformers(
    model: str, folders: dict[str, str], expected: dict[str, Answer]
) -> None:
    folder = {model: folders[model]}
    got = answers(single(), folder, PROMPT, N_GREEDY)[model]
    check(got, expected[model], where=model)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (3, 1), (1, 2), (2, 2)])
def test_every_rank_answers_as_transformers(
    tp: int, pp: int, folders: dict[str, str], expected: dict[str, Answer]
) -> None:
    asked = {model: folders[model] for model in ON_RANKS}
    ranks = run_layout(answers, asked, PROMPT, N_GREEDY, tp=tp, pp=pp)
    for rank, found in enumerate(ranks):
        for model, got in found.items():
            check(got, expected[model], where=f"{model}, rank {rank} of tp {tp} x pp {pp}")


def test_the_models_are_stored_as_they_are_meant_to_be(
    folders: dict[str, str], expected: dict[str, Answer]
) -> None:
    """Else two of them would test the same, and the answers would test little."""
    for model, folder in folders.items():
        n_files = len(list(Path(folder).glob("*.safetensors")))
        assert (n_files > 1) == (model in SHARD_SIZES)
    texts = {tuple(answer.token_ids) for answer in expected.values()}
    assert len(texts) == len(MODELS)
    assert all(len(set(text)) > N_GREEDY // 4 for text in texts)


def test_a_window_shorter_than_the_text_is_refused(tmp_path: Path) -> None:
    random_init("Mistral", {"sliding_window": 16}, seed=0).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"not run yet.* is 16 tokens"):
        make_engine(single(), tmp_path, max_seq_len=len(PROMPT))
    assert make_engine(single(), tmp_path, max_seq_len=16)


def test_gpt2_is_refused_by_its_name(tmp_path: Path) -> None:
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).save_pretrained(tmp_path)
    with pytest.raises(UnknownNameError, match="'gpt2'"):
        make_engine(single(), tmp_path)
