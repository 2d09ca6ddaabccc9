"""Which keys a Hugging Face config.json may have, what each may be, and what others would mean.

The keys are those of LlamaConfig, MistralConfig and GPT2Config from transformers 4 and 5, with
their defaults. How the values make a model is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama.checkpoint.formats.key_table import KeyTable

LLAMA: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
}
MISTRAL: Mapping[str, Any] = {
    **LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
GPT2: Mapping[str, Any] = {
    "vocab_size": 50257,
    "n_embd": 768,
    "n_inner": None,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
}
DEFAULTS = {"llama": LLAMA, "mistral": MISTRAL, "gpt2": GPT2}
"""By model_type: key -> its value where the file leaves it out."""

GPT2_ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
"""Other names under which transformers takes the same values."""

ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "llama": ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"),
    "mistral": ("MistralForCausalLM", "MistralModel"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
}
"""By model_type: the classes whose weights make the same model, old spellings with them."""

ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
LAYER_TYPES = "layer_types"
USE_WINDOW = "use_sliding_window"
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")

# The largest are far beyond any model; they bound what a file can cost.
_KEYS = KeyTable(
    integers={
        "hidden_size": (1, 2**20),
        "intermediate_size": (1, 2**24),
        "num_hidden_layers": (1, 2**14),
        "num_attention_heads": (1, 2**16),
        "num_key_value_heads": (1, 2**16),
        "head_dim": (1, 2**16),
        "vocab_size": (1, 2**28),
        "max_position_embeddings": (1, 2**31),
        "sliding_window": (1, 2**31),
        "n_embd": (1, 2**20),
        "n_inner": (1, 2**24),
        "n_layer": (1, 2**14),
        "n_head": (1, 2**16),
        "n_positions": (1, 2**28),
        "original_max_position_embeddings": (1, 2**31),
    },
    numbers={
        "rms_norm_eps": (1e-30, 1.0),
        "layer_norm_epsilon": (1e-30, 1.0),
        "rope_theta": (1.0, 1e15),
        "factor": (1e-3, 1e6),
        "low_freq_factor": (1e-3, 1e6),
        "high_freq_factor": (1e-3, 1e6),
    },
    booleans=("tie_word_embeddings", "attention_bias", "mlp_bias"),
    nullable=("num_key_value_heads", "head_dim", "sliding_window", "n_inner"),
    texts=("hidden_act", "activation_function"),
)
checked = _KEYS.checked

_OFF: tuple[Any, ...] = (None, False, 0, [], {})
_NEUTRAL_FACTOR = (None, 1, 1.0)
_MOE = (_OFF, "a mixture of experts; use a dense model")
_QUANTISED = (_OFF, "quantised weights; use the checkpoint in bfloat16")
_MULTIMODAL = (_OFF, "more than text; use a text-only model")
_QK_NORM = (_OFF, "normalised queries and keys; use a model without")
_CAPPED = (_OFF, "capped logits; use a model without")
_SCALED = (_NEUTRAL_FACTOR, "scaled activations; use a model without")
_ADAPTERS = (_OFF, "low-rank adapters; merge them into the weights or use the base checkpoint")
_ENCODER = (_OFF, "attention to an encoder; use a decoder-only model")
_NO_POSITIONS = (_OFF, "layers without positions; use a model with RoPE in every layer")

_OTHER_POSITIONS = "positions of another kind; use a model with RoPE or, in GPT-2, learned ones"
_OTHER_SCALE = (_OFF, "another scale of attention; use a model with 1 / sqrt(head_dim)")
_CLIPPED = (_OFF, "clipped queries, keys and values; use a model without")

REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "quantization_config": _QUANTISED,
    "quantization": _QUANTISED,
    "clip_qkv": _CLIPPED,
    "query_pre_attn_scalar": _OTHER_SCALE,
    "attention_scale": _OTHER_SCALE,
    "attn_scale": _OTHER_SCALE,
    "logits_soft_cap": _CAPPED,
    "qk_norm": _QK_NORM,
    "rotary_pct": (_NEUTRAL_FACTOR, "RoPE in a part of each head; use a model with whole heads"),
    "rope_interleaved": (_OFF, "RoPE of adjacent pairs; use weights in Hugging Face's order"),
    "dual_chunk_attention_config": (_OFF, "chunked attention; use a model with full attention"),
    "hidden_activation": ((None, "silu", "swish"), "another activation; use a model with silu"),
    "position_embedding_type": ((None, "absolute", "rope", "rotary"), _OTHER_POSITIONS),
    "sliding_window_pattern": ((None,), "windows in some layers; use a model with one in all"),
    "norm_type": ((None, "rmsnorm", "rms_norm"), "other norms; use a model with RMSNorm"),
    "compression_config": _QUANTISED,
    "num_local_experts": _MOE,
    "num_experts": _MOE,
    "n_routed_experts": _MOE,
    "moe": _MOE,
    "vision_config": _MULTIMODAL,
    "text_config": _MULTIMODAL,
    "audio_config": _MULTIMODAL,
    "peft_config": _ADAPTERS,
    "lora": _ADAPTERS,
    "use_qk_norm": _QK_NORM,
    "qk_layernorm": _QK_NORM,
    "attn_logit_softcapping": _CAPPED,
    "final_logit_softcapping": _CAPPED,
    "residual_multiplier": _SCALED,
    "embedding_multiplier": _SCALED,
    "attention_multiplier": _SCALED,
    "logits_scaling": _SCALED,
    "logit_scale": _SCALED,
    "scale_emb": _SCALED,
    "scale_depth": _SCALED,
    "no_rope_layers": _NO_POSITIONS,
    "no_rope_layer_interval": _NO_POSITIONS,
    "partial_rotary_factor": (_NEUTRAL_FACTOR, "RoPE on a part of each head; use a model without"),
    "original_max_position_embeddings": ((None,), "a length that belongs into rope_parameters"),
    "attention_chunk_size": (_OFF, "chunked attention; use a model with full attention"),
    "alibi": (_OFF, "ALiBi positions; use a model with RoPE"),
    "parallel_attn": (_OFF, "attention beside the feed-forward; use a model that has one after "
                      "the other"),
    "use_bidirectional_attention": (_OFF, "attention to later tokens; use a causal model"),
    "is_causal": ((None, True), "attention to later tokens; use a causal model"),
    "pruned_heads": (_OFF, "removed heads; use the model before pruning"),
    "bias": (_OFF, "biases of another library's model; use attention_bias and mlp_bias"),
    "add_cross_attention": _ENCODER,
    "is_encoder_decoder": _ENCODER,
    "scale_attn_weights": ((None, True), "scores that are not divided by sqrt(head_dim)"),
    "scale_attn_by_inverse_layer_idx": (_OFF, "scores divided by the number of their layer"),
}  # fmt: skip
"""Key -> the values that change nothing, and what any other one would mean."""

HARMLESS = frozenset({
    "torch_dtype", "dtype", "transformers_version", "_name_or_path",
    "name_or_path", "use_cache", "initializer_range", "pretraining_tp", "attention_dropout",
    "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "bos_token_id", "eos_token_id",
    "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "tokenizer_class", "n_ctx",
    "max_sequence_length", "reorder_and_upcast_attn", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "task_specific_params", "finetuning_task", "problem_type", "id2label", "label2id", "prefix",
    "return_dict", "return_dict_in_generate", "output_attentions", "output_hidden_states",
    "output_scores", "gradient_checkpointing", "chunk_size_feed_forward", "is_decoder",
    "torchscript", "use_bfloat16", "cross_attention_hidden_size", "tie_encoder_decoder",
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "max_length",
    "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "suppress_tokens", "begin_suppress_tokens", "num_return_sequences",
    "exponential_decay_length_penalty", "remove_invalid_values", "tf_legacy_loss",
})  # fmt: skip
"""Keys of training, of sampling and of transformers itself; they change nothing of the model."""


def is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether `value` is one of `neutral`, true and 1 being different."""
    return any(type(value) is type(same) and value == same for same in neutral)
