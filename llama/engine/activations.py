"""The most memory that one step takes beside weights and KV cache, from sizes alone.

Each function follows the tensors of one place in the code, as they come and go there: who changes
the life of a tensor there changes the sum here. What libraries keep for themselves is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_FP32_BYTES, _FP64_BYTES, _INT64_BYTES = 4, 8, 8


@dataclass(frozen=True)
class StepSizes:
    """The largest step of one rank: `n_tokens` new tokens and, for each of `n_sequences`, one row
    of logits.

    Widths are elements a token on this rank: `q_width` of its query heads, `kv_width` of its K (and
    V) heads, `ffn_width` of its feed-forward columns. `n_gathered` is the most context tokens that
    attention copies together.
    """

    n_tokens: int
    n_sequences: int
    max_seq_len: int
    n_gathered: int
    dim: int
    head_dim: int
    q_width: int
    kv_width: int
    ffn_width: int
    vocab_size: int
    itemsize: int
    rope_style: Literal["interleaved", "half"]
    has_bias: bool
    n_layers: int
    tp_size: int
    tp_rank: int
    pp_size: int
    pp_rank: int

    @property
    def hidden_bytes(self) -> int:
        """One tensor (n_tokens, dim)."""
        return self.n_tokens * self.dim * self.itemsize

    @property
    def is_last(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def n_received(self) -> int:
        """Hidden states of the stage before, which the runner holds until its step is over."""
        return 1 if self.pp_rank else 0


def activation_bytes(sizes: StepSizes) -> int:
    """The peak over one step: in a layer, or in head and sampler where this stage has them."""
    under_way = 0 if sizes.is_last else sizes.pp_size * sizes.hidden_bytes  # ModelRunner._sending
    peak = _step_tensors(sizes) + max(_attention(sizes), _feed_forward(sizes))
    if sizes.is_last:
        peak = max(peak, _head_and_sampler(sizes, n_rows=sizes.n_sequences))
    return _batch(sizes) + under_way + peak


def prompt_logprobs_bytes(sizes: StepSizes) -> int:
    """What a step takes on top when prompt_logprobs wants the logits of all its tokens."""
    if not sizes.is_last:
        return 0
    peak = _batch(sizes) + _head_and_sampler(sizes, n_rows=sizes.n_tokens)
    return max(0, peak - activation_bytes(sizes))


def _batch(sizes: StepSizes) -> int:
    """Ids, positions and slots."""
    return 3 * sizes.n_tokens * _INT64_BYTES


def _step_tensors(sizes: StepSizes) -> int:
    """What DecoderStage.forward makes for all layers: cos, sin, and the mask of a prompt's chunk.

    The costliest chunk is the last of a prompt as long as can be.
    """
    chunk = min(sizes.n_tokens, sizes.max_seq_len - 1)
    mask = chunk * sizes.max_seq_len * sizes.itemsize
    return sizes.n_tokens * sizes.head_dim * _FP32_BYTES + mask


def _layer_inputs(sizes: StepSizes) -> int:
    """The layer's input, and what the stage was given when that is another tensor."""
    return (1 + (sizes.n_received if sizes.n_layers > 1 else 0)) * sizes.hidden_bytes


def _norm(sizes: StepSizes) -> int:
    """rms_norm: two fp32 tensors; of fp32 input the normalised one and its product."""
    return 2 * sizes.n_tokens * sizes.dim * _FP32_BYTES


def _attention(sizes: StepSizes) -> int:
    """ParallelAttention under LlamaBlock, with the SDPA backend."""
    element = sizes.n_tokens * sizes.itemsize
    qk = sizes.q_width + sizes.kv_width
    n_outputs = 2 if sizes.n_sequences > 1 else 1  # of one part, and of the step
    context = 2 * sizes.n_gathered * sizes.kv_width * sizes.itemsize
    attend = element * (qk + n_outputs * sizes.q_width) + context
    project = element * (qk + sizes.q_width + sizes.dim * (2 if sizes.has_bias else 1))
    qkv = element * (qk + sizes.kv_width)
    inside = sizes.hidden_bytes + qkv + max(_rotation(sizes), attend, project)
    return _layer_inputs(sizes) + max(_norm(sizes), inside)


def _rotation(sizes: StepSizes) -> int:
    """apply_rope on q and k, its result included. It computes in fp32."""
    is_fp32 = sizes.itemsize == _FP32_BYTES
    if sizes.rope_style == "interleaved":
        per_element = _FP32_BYTES if is_fp32 else 2 * _FP32_BYTES + sizes.itemsize
    else:
        per_element = 2 * _FP32_BYTES if is_fp32 else 3 * _FP32_BYTES
    return sizes.n_tokens * (sizes.q_width + sizes.kv_width) * per_element


def _feed_forward(sizes: StepSizes) -> int:
    """SwiGLU under LlamaBlock: gate and up, their product, and the layer's output."""
    after_attention = sizes.hidden_bytes
    products = sizes.n_tokens * sizes.itemsize * 3 * sizes.ffn_width
    n_outputs = 2 if sizes.has_bias and sizes.tp_size > 1 else 1
    inside = sizes.hidden_bytes * (1 + n_outputs) + products
    return _layer_inputs(sizes) + after_attention + max(_norm(sizes), inside)


def _head_and_sampler(sizes: StepSizes, *, n_rows: int) -> int:
    """The rows' logits on their way to tp rank 0, and there the fp64 probabilities of the draws.

    A draw beyond the 256 best tokens sorts its row's vocabulary, which takes as much again for it.
    """
    padded = -(-sizes.vocab_size // sizes.tp_size) * sizes.tp_size
    gathered = n_rows * padded * sizes.itemsize
    own = gathered // sizes.tp_size
    held = (1 + sizes.n_received) * sizes.hidden_bytes
    if sizes.tp_rank:
        return held + own
    gather = own + (2 * gathered if sizes.tp_size > 1 else 0)  # the parts, and these as one
    logits = n_rows * sizes.vocab_size * _FP32_BYTES
    convert = gathered + (0 if sizes.itemsize == _FP32_BYTES else logits)
    draw = logits + 2 * sizes.n_sequences * sizes.vocab_size * _FP64_BYTES
    return held + max(gather, convert, draw)
