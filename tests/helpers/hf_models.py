"""Models of transformers in every family that runs here: tiny, and with every weight random.

Never imported by ranks: loading transformers takes them seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

# Three ranks share 6 heads, but neither the 2 KV heads nor the FFN nor the vocabulary evenly; two
# stages do not share 3 layers evenly.
SIZES = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 100, "vocab_size": 97, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GPT2 = {
    "n_embd": 48, "n_layer": 3, "n_head": 6, "vocab_size": 97, "n_positions": 128,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
# The original context is short, so that each of the three bands of wavelengths is met.
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
# Vocabularies wide apart make choices clear; without the positions GPT-2 would repeat itself.
SPREAD = {
    "lm_head.weight": 0.5, "model.embed_tokens.weight": 0.5, "transformer.wte.weight": 0.5,
    "transformer.wpe.weight": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model of transformers, the lengths of its prompts, and how it is saved."""

    family: str
    values: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = (33, 5)
    max_shard_size: str = "5GB"
    seed: int = 0


MODELS = {
    "llama": Model("Llama", {"num_key_value_heads": 6}),
    "llama gqa": Model("Llama", max_shard_size="40KB", seed=1),
    "llama tied": Model("Llama", {"tie_word_embeddings": True}),
    "llama bias": Model("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama rope-scaled": Model("Llama", {"rope_parameters": LLAMA3, "head_dim": 12}),
    "mistral window 8": Model("Mistral", {"sliding_window": 8}),
    "mistral window 64": Model("Mistral", {"sliding_window": 64}, lengths=(257, 5)),
    "gpt2": Model("GPT2", seed=3),
}


def random_init(model: Model) -> Any:
    """A float32 model in which nothing is left as 0 or 1, and which says its attention weights."""
    is_gpt2 = model.family == "GPT2"
    config_class = getattr(transformers, f"{model.family}Config")
    config = config_class(**(GPT2 if is_gpt2 else SIZES) | model.values)
    head = "LMHeadModel" if is_gpt2 else "ForCausalLM"
    made = getattr(transformers, model.family + head)(config).eval()
    made.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(model.seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(std=SPREAD.get(name, 0.2), generator=generator)
            if name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
                parameter.add_(1.0)
    return made


def prompts_of(model: Model) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(model.family))
    return [torch.randint(97, (n,), generator=generator).tolist() for n in model.lengths]
