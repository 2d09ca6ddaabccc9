"""Meta's Transformer: an engine as one module that computes logits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from llama.checkpoint.canonical import EMBEDDING
from llama.checkpoint.files.part import MemoryTensor
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.formats.meta_layout import is_rope_table
from llama.checkpoint.reader import CheckpointReader
from llama.config import EngineConfig, ModelConfig
from llama.engine.build import load_stage, make_cache
from llama.engine.decide import resolve_dtype
from llama.engine.engine import Engine
from llama.engine.inside import ModelOutput
from llama.errors import CheckpointError, UsageError
from llama.model.args import ModelArgs
from llama.models.decoder import tensor_names
from llama.models.record import Recorder
from llama.ops.rope import inverse_frequencies, rope_table
from llama.parallel.context import single


class IncompatibleKeys(NamedTuple):
    """What torch's load_state_dict returns. Nothing is ever missing: that is an error here."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Transformer(nn.Module):
    """The model under Meta's names.

    `Llama.build` makes one over all ranks. `Transformer(params)` is one process without weights
    until `load_state_dict` brings them. The submodules are this rank's share: linear layers that
    read the same input are fused, `layers` is keyed by layer number, and what another pipeline
    stage holds is None.
    """

    def __init__(self, params: ModelArgs) -> None:
        super().__init__()
        self.params = params
        self._engine: Engine | None = None

    @classmethod
    def from_engine(cls, engine: Engine) -> Transformer:
        """The face of a running engine."""
        sizes = engine.config
        model = cls(
            ModelArgs.from_config(
                engine.model_config,
                max_batch_size=sizes.max_batch_size,
                max_seq_len=sizes.max_seq_len,
            )
        )
        model._attach(engine)
        return model

    def _attach(self, engine: Engine) -> None:
        self._engine = engine
        for name in ("tok_embeddings", "pos_embeddings", "layers", "norm", "output"):
            setattr(self, name, getattr(engine.stage, name))

    @property
    def engine(self) -> Engine:
        """What computes. Raises UsageError while there are no weights."""
        if self._engine is None:
            raise UsageError(
                "this Transformer has no weights yet; call load_state_dict with the full tensors "
                "of a Meta checkpoint, or use Llama.build"
            )
        return self._engine

    @property
    def vocab_size(self) -> int:
        return self.params.vocab_size

    @property
    def n_layers(self) -> int:
        return self.params.n_layers

    @cached_property
    def freqs_cis(self) -> Tensor:
        """(2 · max_seq_len, head_dim / 2) complex64, as Meta's attribute. Nothing here uses it.

        With dynamic scaling, of texts within the original context. Raises UsageError for a model
        that does not rotate.
        """
        config = self.engine.model_config
        if self.engine.stage.rotary is None:
            raise UsageError(f"{config.architecture} learned its positions; it has no freqs_cis")
        frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        return torch.complex(*rope_table(frequencies, 2 * self.params.max_seq_len))

    @overload
    def forward(self, tokens: Tensor, start_pos: int) -> Tensor: ...

    @overload
    def forward(
        self,
        tokens: Tensor,
        start_pos: int,
        output_hidden_states: bool = ...,
        output_attentions: bool = ...,
    ) -> Tensor | ModelOutput: ...

    def forward(
        self,
        tokens: Tensor,
        start_pos: int,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Tensor | ModelOutput:
        """float32 logits (batch, seq, vocab_size) on every rank, where `tokens` (batch, seq) are.

        Collective. Positions before `start_pos` are those of earlier calls with the same rows.
        With an output asked for a ModelOutput on every rank's CPU; attentions are computed slowly
        and take memory that grows with the square of the text.
        """
        if not (output_hidden_states or output_attentions):
            return self.engine.forward_rows(tokens, start_pos).to(tokens.device)
        record = Recorder(hidden_states=output_hidden_states, attentions=output_attentions)
        return self.engine.look_inside(tokens, start_pos, record)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Take the full tensors of a Meta checkpoint and build a one-process engine on the CPU.

        `strict` False lets other names be, and returns them; RoPE tables are no surprise either
        way. `assign` has no effect, since weights are copied into fused ones. Raises UsageError for
        one shard of several and for unknown names, CheckpointError when something is missing.
        """
        tensors = {name: t for name, t in state_dict.items() if not is_rope_table(name)}
        if EMBEDDING not in tensors:
            raise CheckpointError(
                f"the state dict lacks {EMBEDDING}; give all of a model's tensors"
            )
        vocab_size = self.params.vocab_size
        if vocab_size < 1:
            vocab_size = tensors[EMBEDDING].shape[0]
        config = self.params.to_config(vocab_size=vocab_size)
        _refuse_shard(tensors, config)
        known = tensor_names(config)
        unexpected = sorted(tensors.keys() - known)
        if strict and unexpected:
            raise UsageError(f"load_state_dict got names of no Llama tensor: {unexpected[:10]}")
        kept = {name: tensor for name, tensor in tensors.items() if name in known}
        self.params.vocab_size = vocab_size
        self._attach(_single_process_engine(_in_memory(config, kept), self.params))
        return IncompatibleKeys([], unexpected)


def _in_memory(config: ModelConfig, tensors: Mapping[str, Tensor]) -> CheckpointReader:
    stored = {name: StoredTensor.of([MemoryTensor(tensor)]) for name, tensor in tensors.items()}
    return CheckpointReader("memory", Path(), config, stored, ignored={})


def _single_process_engine(reader: CheckpointReader, params: ModelArgs) -> Engine:
    config = EngineConfig(max_seq_len=params.max_seq_len, max_batch_size=params.max_batch_size)
    context = single()
    dtype = resolve_dtype(None, device=context.device, checkpoint=reader.dtype)
    stage, _ = load_stage(reader, config=config, context=context, dtype=dtype)
    return Engine(
        model_config=reader.config,
        config=config,
        context=context,
        stage=stage,
        cache=make_cache(stage, config=config, context=context, dtype=dtype),
        dtype=dtype,
    )


def _refuse_shard(tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    wq = tensors.get("layers.0.attention.wq.weight")
    expected = (config.n_heads * config.head_dim, config.dim)
    if wq is not None and tuple(wq.shape) != expected:
        raise UsageError(
            f"layers.0.attention.wq.weight has shape {tuple(wq.shape)}, not {expected}: one shard "
            "of several, or another model; Llama.build reads all shards of a checkpoint"
        )
