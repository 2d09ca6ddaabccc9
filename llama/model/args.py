"""Meta's ModelArgs: the sizes of a model and of one run, in the names of params.json."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from llama.checkpoint.formats.params import Params, ffn_dim, implied_rope_factor
from llama.config import ModelConfig, RopeScaling


@dataclass
class ModelArgs:
    """Everything that any release's params.json says, and the sizes of one run.

    The union of the fields of Llama 2, Code Llama and Llama 3 to 3.3, with Llama 2's defaults: only
    its files leave `rope_theta` out, and they mean 10000. `vocab_size` -1 means that the weights
    tell. The last three, of Meta's llama-models, are None where the others imply them. An unknown
    key is a TypeError, as in Meta's package.
    """

    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    vocab_size: int = -1
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    use_scaled_rope: bool = False
    max_batch_size: int = 32
    max_seq_len: int = 2048
    head_dim: int | None = None
    rope_scaling_factor: float | None = None
    rope_high_freq_factor: float | None = None

    @classmethod
    def from_config(
        cls, config: ModelConfig, *, max_batch_size: int, max_seq_len: int
    ) -> ModelArgs:
        """The args of a loaded model.

        A ModelConfig knows its feed-forward width, not the two numbers it was made from; where the
        defaults do not give that width, two are chosen here that do. Biases, windows and another
        scaling of RoPE than Llama 3's have no field.
        """
        scaling = config.rope_scaling
        if scaling is not None and scaling.kind != "llama3":
            scaling = None
        args = cls(
            dim=config.dim,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            vocab_size=config.vocab_size,
            norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            use_scaled_rope=scaling is not None,
            max_batch_size=max_batch_size,
            max_seq_len=max_seq_len,
        )
        if ffn_dim(args.dim, multiple_of=args.multiple_of, multiplier=None) != config.ffn_dim:
            args.multiple_of = config.ffn_dim
            args.ffn_dim_multiplier = config.ffn_dim / int(2 * 4 * config.dim / 3)
        if config.head_dim * config.n_heads != config.dim:
            args.head_dim = config.head_dim
        if scaling is not None:
            if scaling.factor != implied_rope_factor(config.dim):
                args.rope_scaling_factor = scaling.factor
            if scaling.high_freq_factor != RopeScaling.high_freq_factor:
                args.rope_high_freq_factor = scaling.high_freq_factor
        return args

    def to_config(self, *, vocab_size: int) -> ModelConfig:
        """The architecture, as a params.json with these values would give it."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        values = {name: value for name, value in given.items() if value is not None}
        return Params(Path("ModelArgs"), values, {}).model_config(vocab_size=vocab_size)
