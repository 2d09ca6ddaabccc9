"""An engine over a checkpoint and a given context, for most engine tests without tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llama.checkpoint import open_checkpoint
from llama.config import EngineConfig
from llama.engine.build import load_stage, make_cache
from llama.engine.engine import Engine
from llama.parallel.context import ParallelContext
from llama.tokenizer import Tokenizer


def make_engine(
    context: ParallelContext,
    ckpt_dir: str | Path,
    *,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Engine:
    """An engine that computes in `dtype`; `options` are EngineConfig's."""
    config = EngineConfig(**{"max_seq_len": 128, "max_batch_size": 8, "block_size": 4, **options})
    reader = open_checkpoint(ckpt_dir)
    stage, _ = load_stage(reader, config=config, context=context, dtype=dtype)
    model_config = reader.config
    reader.close()
    return Engine(
        model_config=model_config,
        config=config,
        context=context,
        stage=stage,
        cache=make_cache(stage, config=config, context=context, dtype=dtype),
        dtype=dtype,
        tokenizer=tokenizer,
        seed=seed,
    )
