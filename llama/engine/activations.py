"""The most memory that one step takes beside weights and KV cache, from sizes alone.

Each function follows the tensors of one place in the code, as they come and go there: who changes
the life of a tensor there changes the sum here. What libraries keep for themselves is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llama.layers.embedding import ROWS_AT_ONCE

_FP32_BYTES, _FP64_BYTES, _INT64_BYTES = 4, 8, 8


@dataclass(frozen=True)
class StepSizes:
    """The largest step of one rank: `n_tokens` new tokens and, for each of `n_sequences`, one row
    of logits.

    Widths are elements a token on this rank: `q_width` of its query heads, `kv_width` of its K (and
    V) heads, `ffn_width` of its feed-forward columns. `windows` are the sliding windows of its
    layers, each once. `n_grouped` is the most context tokens of several sequences that attention
    copies together; `repeats_kv` says whether a prompt's are repeated for all heads of a group.
    `rope_style` is None where positions are learned. `workspace_bytes` is what one product takes
    beside x and its result.
    """

    n_tokens: int
    n_sequences: int
    max_seq_len: int
    windows: frozenset[int | None]
    n_grouped: int
    repeats_kv: bool
    dim: int
    head_dim: int
    q_width: int
    kv_width: int
    ffn_width: int
    vocab_size: int
    itemsize: int
    architecture: str
    rope_style: Literal["interleaved", "half"] | None
    has_bias: bool
    n_layers: int
    tp_size: int
    tp_rank: int
    pp_size: int
    pp_rank: int
    workspace_bytes: int = 0

    @property
    def hidden_bytes(self) -> int:
        """One tensor (n_tokens, dim)."""
        return self.n_tokens * self.dim * self.itemsize

    @property
    def is_last(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def is_gpt2(self) -> bool:
        return self.architecture == "gpt2"

    @property
    def n_received(self) -> int:
        """Hidden states of the stage before, which the runner holds until its step is over."""
        return 1 if self.pp_rank else 0


def activation_bytes(sizes: StepSizes) -> int:
    """The peak over one step: in a layer, or in head and sampler where this stage has them."""
    under_way = 0 if sizes.is_last else sizes.pp_size * sizes.hidden_bytes  # ModelRunner._sending
    peak = _step_tensors(sizes) + max(_attention(sizes), _feed_forward(sizes))
    if sizes.is_last:
        peak = max(peak, _head_and_sampler(sizes))
    return _batch(sizes) + under_way + peak + sizes.workspace_bytes


def prompt_logprobs_bytes(sizes: StepSizes) -> int:
    """What a step takes on top when prompt_logprobs scores all its tokens."""
    if not sizes.is_last:
        return 0
    rows_and_targets = 2 * sizes.n_tokens * _INT64_BYTES
    peak = _batch(sizes) + rows_and_targets + max(_scoring(sizes), _head_and_sampler(sizes))
    return max(0, peak - activation_bytes(sizes))


def _batch(sizes: StepSizes) -> int:
    """Ids, positions and slots."""
    return 3 * sizes.n_tokens * _INT64_BYTES


def _step_tensors(sizes: StepSizes) -> int:
    """What DecoderStage.forward makes for all layers: cos, sin, and the mask of a prompt's chunk,
    one for each window.

    The costliest chunk is the last of a prompt as long as can be.
    """
    chunk = min(sizes.n_tokens, sizes.max_seq_len - 1)
    seen = sum(_seen_by_a_chunk(sizes, window) for window in sizes.windows)
    mask = chunk * seen * sizes.itemsize
    angles = sizes.n_tokens * sizes.head_dim * _FP32_BYTES if sizes.rope_style else 0
    return angles + mask


def _seen_by_a_chunk(sizes: StepSizes, window: int | None) -> int:
    """Most tokens that those of a prompt's chunk see together, their own included."""
    if window is None:
        return sizes.max_seq_len
    return min(sizes.max_seq_len, window - 1 + sizes.n_tokens)


def _layer_inputs(sizes: StepSizes) -> int:
    """The layer's input, and what the stage was given when that is another tensor."""
    return (1 + (sizes.n_received if sizes.n_layers > 1 else 0)) * sizes.hidden_bytes


def _norm(sizes: StepSizes) -> int:
    """rms_norm: two fp32 tensors; of fp32 input the normalised one and its product. layer_norm
    makes its result alone.
    """
    if sizes.is_gpt2:
        return sizes.hidden_bytes
    return 2 * sizes.n_tokens * sizes.dim * _FP32_BYTES


def _attention(sizes: StepSizes) -> int:
    """ParallelAttention under a block, with the SDPA backend."""
    element = sizes.n_tokens * sizes.itemsize
    qk = sizes.q_width + sizes.kv_width if sizes.rope_style else 0  # rotated, so another tensor
    outputs = element * sizes.q_width  # of all parts
    joined = outputs if sizes.n_sequences > 1 else 0
    attend = element * qk + outputs + max(_context(sizes), joined)
    project = element * (qk + sizes.q_width + sizes.dim * (2 if sizes.has_bias else 1))
    qkv = element * (sizes.q_width + 2 * sizes.kv_width)
    inside = sizes.hidden_bytes + qkv + max(_rotation(sizes), attend, project)
    return _layer_inputs(sizes) + max(_norm(sizes), inside)


def _context(sizes: StepSizes) -> int:
    """K and V that are gathered for one part, and repeated for all heads. A chunk that writes over
    a ring has its past copied first, V's while K's is whole.
    """
    seen = max(_seen_by_a_chunk(sizes, window) for window in sizes.windows)
    past = 0 if None in sizes.windows else max(seen - sizes.n_tokens, 0)
    prompt = (2 * seen + past) * sizes.kv_width
    if sizes.repeats_kv and sizes.q_width > sizes.kv_width:
        prompt = 2 * seen * (sizes.kv_width + sizes.q_width)
    return max(prompt, 2 * sizes.n_grouped * sizes.kv_width) * sizes.itemsize


def _rotation(sizes: StepSizes) -> int:
    """apply_rope on q and k, its result included. It computes in fp32."""
    if sizes.rope_style is None:
        return 0
    is_fp32 = sizes.itemsize == _FP32_BYTES
    if sizes.rope_style == "interleaved":
        per_element = _FP32_BYTES if is_fp32 else 2 * _FP32_BYTES + sizes.itemsize
    else:
        per_element = 2 * _FP32_BYTES if is_fp32 else 3 * _FP32_BYTES
    return sizes.n_tokens * (sizes.q_width + sizes.kv_width) * per_element


def _feed_forward(sizes: StepSizes) -> int:
    """The feed-forward layer under a block, and its output.

    SwiGLU holds gate and up beside their product; GELU lets go of what it was given.
    """
    after_attention = sizes.hidden_bytes
    columns = sizes.n_tokens * sizes.itemsize * sizes.ffn_width
    n_outputs = 2 if sizes.has_bias and sizes.tp_size > 1 else 1
    outputs = n_outputs * sizes.hidden_bytes
    products = max(2 * columns, columns + outputs) if sizes.is_gpt2 else 3 * columns + outputs
    inside = sizes.hidden_bytes + products
    return _layer_inputs(sizes) + after_attention + max(_norm(sizes), inside)


def _scoring(sizes: StepSizes) -> int:
    """DecoderStage.target_logprobs: the tokens' hidden states before and after the norm, and one
    tile of logits over this rank's words.
    """
    held = (1 + sizes.n_received) * sizes.hidden_bytes
    words = -(-sizes.vocab_size // sizes.tp_size)
    per_logit = _FP32_BYTES + (0 if sizes.itemsize == _FP32_BYTES else sizes.itemsize)
    tile = min(sizes.n_tokens, ROWS_AT_ONCE) * words * per_logit
    return held + sizes.hidden_bytes + max(_norm(sizes), sizes.hidden_bytes + tile)


def _head_and_sampler(sizes: StepSizes) -> int:
    """The rows' logits on their way to tp rank 0, and there the fp64 probabilities of the draws.

    A draw beyond the 256 best tokens sorts its row's vocabulary, which takes as much again for it.
    """
    padded = -(-sizes.vocab_size // sizes.tp_size) * sizes.tp_size
    gathered = sizes.n_sequences * padded * sizes.itemsize
    own = gathered // sizes.tp_size
    held = (1 + sizes.n_received) * sizes.hidden_bytes
    if sizes.tp_rank:
        return held + own
    gather = own + (2 * gathered if sizes.tp_size > 1 else 0)  # the parts, and these as one
    logits = sizes.n_sequences * sizes.vocab_size * _FP32_BYTES
    convert = gathered + (0 if sizes.itemsize == _FP32_BYTES else logits)
    draw = logits + 2 * sizes.n_sequences * sizes.vocab_size * _FP64_BYTES
    return held + max(gather, convert, draw)
