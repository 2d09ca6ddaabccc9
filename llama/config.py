"""What is run and how: four frozen dataclasses, checked once, with every derived number as a
property.

Nothing here knows files or devices; `llama.checkpoint` makes a ModelConfig from each format's own
keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from llama.errors import UsageError

DEFAULT_BLOCK_SIZE = 16
DEFAULT_MAX_SEQ_LEN = 2048
ROPE_KINDS = ("llama3", "linear", "dynamic")
TIME_LIMITS: Mapping[str, float] = MappingProxyType(
    {
        "init_timeout_s": 120.0,
        "load_timeout_s": 300.0,
        "step_timeout_s": 30.0,
        "heartbeat_timeout_s": 5.0,
    }
)
"""Fields of ParallelConfig that may be left open, and what holds then."""


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE frequencies are stretched; see `llama.ops.rope`.

    "llama3" is Llama 3.1's (wavelength bands). "linear" divides every frequency by `factor` and
    uses nothing else. "dynamic" slows them only in sequences longer than `original_context`, the
    more the longer they are.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    kind: Literal["llama3", "linear", "dynamic"] = "llama3"

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise UsageError(f"unknown rope scaling {self.kind!r}; known: {', '.join(ROPE_KINDS)}")
        values = (self.factor, self.low_freq_factor, self.high_freq_factor)
        if not all(math.isfinite(v) and v > 0 for v in values) or self.original_context < 1:
            raise UsageError(f"rope scaling needs finite positive numbers, got {self}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise UsageError(
                f"rope scaling needs high_freq_factor {self.high_freq_factor} above "
                f"low_freq_factor {self.low_freq_factor}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one model, in full (unsharded) sizes.

    `rope_style` says which pairs of a head rotate together: "interleaved" (2i, 2i+1; Meta and
    Mistral files) or "half" (i, i + head_dim/2; Hugging Face files). It belongs to the checkpoint.
    `sliding_window` counts the keys that a query sees, its own included; a tuple goes round the
    layers and None in it means all. `tied_embeddings`: the head is the embedding, stored once.
    `max_positions` is how far positions go: a hard limit where they are learned ("gpt2").
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_style: Literal["interleaved", "half"] = "interleaved"
    attention_bias: bool = False
    mlp_bias: bool = False
    architecture: str = "llama"
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    tied_embeddings: bool = False
    sliding_window: int | tuple[int | None, ...] | None = None
    max_positions: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "ffn_dim",
            "vocab_size",
        ):
            _check_size(name, getattr(self, name))
        for window in self.windows:
            _check_size("sliding_window", window, nullable=True)
        _check_size("max_positions", self.max_positions, nullable=True)
        if self.n_heads % self.n_kv_heads:
            raise UsageError(f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}")
        if self.head_dim % 2 and self.architecture != "gpt2":
            raise UsageError(f"head_dim must be even for rotary embedding, got {self.head_dim}")
        if self.head_dim < 4 and self.rope_scaling and self.rope_scaling.kind == "dynamic":
            raise UsageError(f"dynamic rope scaling needs head_dim above 2, got {self.head_dim}")
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be a finite positive number, got {value!r}")

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of every layer; None where a query sees all keys before it."""
        given = self.sliding_window
        cycle = given if isinstance(given, tuple) and given else (given,)
        return tuple(cycle[layer % len(cycle)] for layer in range(self.n_layers))  # type: ignore[misc]

    @property
    def widest_window(self) -> int | None:
        """The keys that some query may see; None where a layer sees all."""
        windows = [window for window in self.windows if window is not None]
        return max(windows) if len(windows) == self.n_layers else None

    @property
    def layer_parameters(self) -> int:
        """Weights of one block without the vectors among them, for balancing stages."""
        attention = self.dim * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        n_ffn_matrices = 2 if self.architecture == "gpt2" else 3
        return attention + n_ffn_matrices * self.dim * self.ffn_dim + 2 * self.dim

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding, and of the head when it is not tied."""
        return self.vocab_size * self.dim

    @property
    def position_parameters(self) -> int:
        """Parameters of learned positions, which only the first stage holds."""
        return (self.max_positions or 0) * self.dim if self.architecture == "gpt2" else 0


@dataclass(frozen=True)
class ParallelConfig:
    """What the user asked for; None means "find out". `timeout_s` bounds one collective.

    A size "auto" is chosen for the checkpoint, by `llama.engine.decide.decide_layout`. `backend` is
    what torch's groups are made with, `transport` what moves data between ranks of one host; see
    `llama.parallel.transport`.

    `control_timeout_s` bounds the wait for rank 0's next plan; an interactive job idles that long.
    Where there is a heartbeat it also bounds the wait for the stage before, over gloo.
    `init_timeout_s` bounds the wait for all ranks (120), `load_timeout_s` a load without progress
    (300), `step_timeout_s` a step without (30). A rank that is silent for `heartbeat_timeout_s` (5)
    is given up; 0 is no heartbeat. None is LLAMA_INIT_TIMEOUT_S and so on, then those defaults.
    Raises UsageError for a limit that is no finite number above 0.
    """

    tp_size: int | Literal["auto"] | None = None
    pp_size: int | Literal["auto"] | None = None
    device: str | None = None
    backend: str | None = None
    transport: str | None = None
    timeout_s: float = 300.0
    init_timeout_s: float | None = None
    load_timeout_s: float | None = None
    step_timeout_s: float | None = None
    heartbeat_timeout_s: float | None = None
    control_timeout_s: float = 86400.0

    def __post_init__(self) -> None:
        for name in ("timeout_s", "control_timeout_s"):
            _check_seconds(name, getattr(self, name))
        for name in TIME_LIMITS:
            if getattr(self, name) is not None:
                may_be_off = name == "heartbeat_timeout_s"
                _check_seconds(name, getattr(self, name), may_be_off=may_be_off)

    def limit_s(self, name: str) -> float:
        """The limit of that name, one of TIME_LIMITS, or its default where it is open."""
        given: float | None = getattr(self, name)
        return TIME_LIMITS[name] if given is None else given


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of the engine. Lengths are in tokens.

    `max_batch_size` sequences may run at once; `max_num_batched_tokens` bounds one step, so a
    longer prompt is prefilled in chunks. `num_blocks` None takes what max_batch_size sequences of
    max_seq_len (or of the widest sliding window) need, or what fits. `attention` is a backend's
    name, or "auto" for the best here; on CUDA decoding steps are captured as graphs where it allows
    that, unless `enforce_eager`. `quantize` says how the weights of linear layers are held, as
    "int8" or, with a group size, "int4:64"; see `llama.quant.choose`.
    """

    max_seq_len: int = DEFAULT_MAX_SEQ_LEN
    max_batch_size: int = 32
    block_size: int = DEFAULT_BLOCK_SIZE
    max_num_batched_tokens: int = 2048
    num_blocks: int | None = None
    attention: str = "auto"
    memory_fraction: float = 0.9
    quantize: str | None = None
    enforce_eager: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any], *, model: ModelConfig) -> EngineConfig:
        """From options by name. Raises UsageError for an unknown one, too.

        A max_seq_len None or left out is the default, or as far as positions of `model` go.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise UsageError(
                f"unknown engine option {', '.join(unknown)}; known: {', '.join(known)}"
            )
        if options.get("max_seq_len") is None:
            longest = min(DEFAULT_MAX_SEQ_LEN, model.max_positions or DEFAULT_MAX_SEQ_LEN)
            options = {**options, "max_seq_len": longest}
        return cls(**options)

    def __post_init__(self) -> None:
        for name in ("max_seq_len", "max_batch_size", "block_size", "max_num_batched_tokens"):
            _check_size(name, getattr(self, name))
        _check_size("num_blocks", self.num_blocks, nullable=True)
        fraction = self.memory_fraction
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise UsageError(f"memory_fraction must be in (0, 1], got {fraction!r}")

    def ring_blocks(self, widest_window: int | None) -> int:
        """Most KV blocks of one sequence: of its last `widest_window` tokens, or of max_seq_len."""
        longest = min(self.max_seq_len, widest_window or self.max_seq_len)
        return -(-longest // self.block_size)


def _check_size(name: str, value: object, *, nullable: bool = False) -> None:
    """Raises UsageError unless `value` is an integer of at least 1, or None where it may be."""
    if value is None and nullable:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be an integer of at least 1, got {value!r}")


_MOST_SECONDS = 2_000_000
"""23 days: torch counts milliseconds in 32 bits."""


def _check_seconds(name: str, value: object, *, may_be_off: bool = False) -> None:
    """Raises UsageError unless `value` is a finite number above 0, or 0 where that means off."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= _MOST_SECONDS or (value == 0 and not may_be_off):  # type: ignore[operator]
        least = "0 (off) or more" if may_be_off else "above 0"
        most = f", at most {_MOST_SECONDS}" if is_number and value > _MOST_SECONDS else ""  # type: ignore[operator]
        raise UsageError(f"{name} must be a number of seconds {least}{most}, got {value!r}")
