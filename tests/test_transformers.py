"""Models that the parity matrix leaves out: the engine gives the answers that transformers gives.

Models are made, saved and asked by transformers; every weight is random, norms and biases too, and
the logits are spread far enough that no greedy choice is a matter of rounding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from llama.parallel.context import single
from tests.helpers.answers import Answer, answers
from tests.helpers.ranks import run_layout

pytestmark = pytest.mark.slow

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
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
SEVERAL = {
    "attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True,
    "rope_parameters": LLAMA3,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "rope linear": ("Llama", {"rope_parameters": LINEAR}),
    # The prompt has 20 tokens: the answer leaves the original context, or the prompt has already.
    "rope dynamic": ("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 30}),
    "rope dynamic all along": (
        "Llama",
        {"rope_parameters": DYNAMIC, "max_position_embeddings": 16},
    ),
    "several at once": ("Llama", SEVERAL),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral with a wide window": ("Mistral", {"sliding_window": 200, "head_dim": 12}),
}
ON_RANKS = ("several at once", "mistral", "rope dynamic")


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
        model.save_pretrained(folders[name])
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


@pytest.mark.parametrize(("tp", "pp"), [(3, 1), pytest.param(1, 2, marks=pytest.mark.nightly)])
def test_every_rank_answers_as_transformers(
    tp: int, pp: int, folders: dict[str, str], expected: dict[str, Answer]
) -> None:
    asked = {model: folders[model] for model in ON_RANKS}
    ranks = run_layout(answers, asked, PROMPT, N_GREEDY, tp=tp, pp=pp)
    for rank, found in enumerate(ranks):
        for model, got in found.items():
            check(got, expected[model], where=f"{model}, rank {rank} of tp {tp} x pp {pp}")


def test_models_are_told_apart(expected: dict[str, Answer]) -> None:
    """Else two of them would test the same, and the answers would test little."""
    texts = {tuple(answer.token_ids) for answer in expected.values()}
    assert len(texts) == len(MODELS)
    assert all(len(set(text)) > N_GREEDY // 4 for text in texts)
