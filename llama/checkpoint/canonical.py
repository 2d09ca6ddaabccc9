"""What every tensor of a model is called here, whatever a publisher calls it, and its full shape.

The names are those of Meta's files. GPT-2, which Meta never published, has the same ones, with
learned positions and biases added, its up projection as w1 and its down projection as w2.
"""

from __future__ import annotations

from llama.config import ModelConfig

EMBEDDING = "tok_embeddings.weight"
POSITIONS = "pos_embeddings.weight"
HEAD = "output.weight"

_COLUMN_PARALLEL = (
    "tok_embeddings", "output", "wq", "wk", "wv", "w1", "w3",
    "wqkv", "w13",  # linears that are fused
)  # fmt: skip
_ROW_PARALLEL = ("wo", "w2")

Shape = tuple[int, ...]


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name -> full shape of every tensor, in the order of Meta's files.

    Linear weights are (out_features, in_features). A tied head is listed as well.
    """
    vocabulary = (config.vocab_size, config.dim)
    shapes: dict[str, Shape] = {EMBEDDING: vocabulary}
    if config.architecture == "gpt2":
        assert config.max_positions is not None, "a gpt2 config gives max_positions"
        shapes[POSITIONS] = (config.max_positions, config.dim)
    layer = layer_shapes(config)
    for index in range(config.n_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes |= _norm(config, "norm")
    shapes[HEAD] = vocabulary
    return shapes


def split_dim(name: str) -> int | None:
    """The dim along which tensor parallel ranks share a tensor; None when each has all of it.

    Fused linears are cut as those that they are made of; the bias of a row-parallel one is whole.
    """
    owner, _, kind = name.rpartition(".")
    module = owner.rpartition(".")[2]
    if module in _COLUMN_PARALLEL:
        return 0
    return 1 if module in _ROW_PARALLEL and kind == "weight" else None


def layer_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name within one layer -> full shape."""
    q_dim = config.n_heads * config.head_dim
    kv_dim = config.n_kv_heads * config.head_dim
    attention: dict[str, Shape] = {
        "wq": (q_dim, config.dim),
        "wk": (kv_dim, config.dim),
        "wv": (kv_dim, config.dim),
        "wo": (config.dim, q_dim),
    }
    feed_forward: dict[str, Shape] = {
        "w1": (config.ffn_dim, config.dim),
        "w2": (config.dim, config.ffn_dim),
    }
    if config.architecture != "gpt2":
        feed_forward["w3"] = (config.ffn_dim, config.dim)
    return {
        **_linears("attention", attention, bias=config.attention_bias),
        **_linears("feed_forward", feed_forward, bias=config.mlp_bias),
        **_norm(config, "attention_norm"),
        **_norm(config, "ffn_norm"),
    }


def _linears(owner: str, shapes: dict[str, Shape], *, bias: bool) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        found[f"{owner}.{name}.weight"] = shape
        if bias:
            found[f"{owner}.{name}.bias"] = shape[:1]
    return found


def _norm(config: ModelConfig, name: str) -> dict[str, Shape]:
    kinds = ("weight", "bias") if config.architecture == "gpt2" else ("weight",)
    return {f"{name}.{kind}": (config.dim,) for kind in kinds}
