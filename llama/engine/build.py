"""From a folder and a few wishes to a running engine. Collective: every rank calls it alike.

The order matters: ranks first agree on what they were asked, then load, then count what memory is
left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from os.path import abspath
from pathlib import Path
from typing import Any

import torch

from llama.checkpoint import open_checkpoint
from llama.checkpoint.loader import LoadReport, load
from llama.checkpoint.reader import CheckpointReader
from llama.config import EngineConfig, ModelConfig, ParallelConfig
from llama.engine.engine import Engine
from llama.engine.memory import agree_num_blocks, free_bytes
from llama.errors import CheckpointError, UsageError
from llama.kvcache.cache import KVCache, block_bytes
from llama.models.decoder import DecoderStage, stage_of, tensor_names
from llama.parallel.context import ParallelContext, initialize
from llama.tokenizer import Tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(
    dtype: str | torch.dtype | None, *, device: torch.device, checkpoint: torch.dtype
) -> torch.dtype:
    """The compute dtype: as asked, else the checkpoint's on an accelerator and float32 on a CPU.

    CPUs without 16-bit units run bfloat16 slower than float32. Raises UsageError for an unknown
    name.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else checkpoint
    found = _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise UsageError(f"unknown dtype {dtype!r}; known: {', '.join(sorted(_DTYPES))}")
    return found


def build_engine(
    ckpt_dir: str | Path,
    *,
    tokenizer_path: str | Path | None = None,
    engine_options: Mapping[str, Any],
    parallel: ParallelConfig,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
) -> tuple[Engine, Tokenizer, LoadReport]:
    """The engine over the checkpoint in `ckpt_dir`, its tokenizer, and what this rank loaded.

    `engine_options` are the fields of EngineConfig. Raises on every rank what fails on any, and
    then holds no groups: CheckpointError, UsageError, RankMismatchError, HardwareError,
    OutOfMemoryError, PeerLostError.
    """
    context = initialize(parallel)
    try:
        return _build(
            ckpt_dir, context, tokenizer_path, engine_options=engine_options, dtype=dtype, seed=seed
        )
    except BaseException as error:
        context.fail(error)
        raise


def _build(
    ckpt_dir: str | Path,
    context: ParallelContext,
    tokenizer_path: str | Path | None,
    *,
    engine_options: Mapping[str, Any],
    dtype: str | torch.dtype | None,
    seed: int,
) -> tuple[Engine, Tokenizer, LoadReport]:
    with context.together("checking the arguments"):
        config = EngineConfig.of(engine_options)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UsageError(f"seed must be an integer, got {seed!r}")
    with context.together("opening the checkpoint"):
        reader = open_checkpoint(ckpt_dir)
        tokenizer_path = tokenizer_path or find_tokenizer(ckpt_dir)
        tokenizer = Tokenizer(str(tokenizer_path))
        model_config = reader.config
        compute_dtype = resolve_dtype(
            dtype, device=context.device, checkpoint=checkpoint_dtype(reader)
        )
        check_vocabulary(model_config, tokenizer, ckpt_dir=ckpt_dir, tokenizer_path=tokenizer_path)
    context.agree(
        {
            "torch": str(torch.__version__),
            "tokenizer sha256": hashlib.sha256(Path(tokenizer_path).read_bytes()).hexdigest(),
            "dtype": str(compute_dtype),
            "seed": seed,
            **_fields("engine", config),
            **_fields("model", model_config),
        }
    )
    stage, report = load_stage(reader, config=config, context=context, dtype=compute_dtype)
    reader.close()
    cache = make_cache(stage, config=config, context=context, dtype=compute_dtype)
    engine = Engine(
        model_config=model_config,
        config=config,
        context=context,
        stage=stage,
        cache=cache,
        dtype=compute_dtype,
        tokenizer=tokenizer,
        seed=seed,
    )
    return engine, tokenizer, report


def find_tokenizer(ckpt_dir: str | Path) -> Path:
    """`tokenizer.model` in the checkpoint's folder, or beside it as Meta's Llama 1 and 2.

    Raises CheckpointError where there is none.
    """
    folder = Path(abspath(ckpt_dir))  # "." by itself has no parent to look into
    candidates = [folder / "tokenizer.model", folder.parent / "tokenizer.model"]
    for path in candidates:
        if path.is_file():
            return path
    looked = " and ".join(str(path) for path in candidates)
    raise CheckpointError(f"no tokenizer found (looked for {looked}); give tokenizer_path")


def load_stage(
    reader: CheckpointReader, *, config: EngineConfig, context: ParallelContext, dtype: torch.dtype
) -> tuple[DecoderStage, LoadReport]:
    """This rank's stage with its weights, and what was read for it. Collective."""
    available_bytes = free_bytes(context.device, local_ranks=context.local_world_size)
    context.world.barrier()  # nobody takes memory before everybody has looked
    with context.together("loading the checkpoint"):
        stage = DecoderStage(
            reader.config,
            stage_of(
                reader.config,
                pp_size=context.layout.pp_size,
                pp_rank=context.coordinates.pp_rank,
            ),
            tp=context.tp,
            dtype=dtype,
            max_positions=config.max_seq_len,
            attention=config.attention,
        )
        report = load(
            stage,
            reader,
            device=context.device,
            all_names=tensor_names(reader.config),
            available_bytes=available_bytes,
        )
    return stage, report


def make_cache(
    stage: DecoderStage, *, config: EngineConfig, context: ParallelContext, dtype: torch.dtype
) -> KVCache:
    """The local layers' KV cache, with as many blocks as every rank has room for. Collective."""
    layers = stage.stage.layers
    head_dim = stage.config.head_dim
    bytes_per_block = block_bytes(
        len(layers),
        block_size=config.block_size,
        n_kv_heads=stage.n_local_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
    )
    return KVCache(
        layers,
        num_blocks=agree_num_blocks(config, block_bytes=bytes_per_block, context=context),
        block_size=config.block_size,
        n_kv_heads=stage.n_local_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        device=context.device,
    )


def checkpoint_dtype(reader: CheckpointReader) -> torch.dtype:
    """The dtype of the first weight matrix; norms may be stored wider."""
    return next(info.dtype for info in reader.tensors.values() if len(info.shape) == 2)


def check_vocabulary(
    config: ModelConfig, tokenizer: Tokenizer, *, ckpt_dir: str | Path, tokenizer_path: str | Path
) -> None:
    """Raises CheckpointError when the tokenizer does not belong to the weights."""
    if tokenizer.n_words != config.vocab_size:
        raise CheckpointError(
            f"tokenizer {tokenizer_path} has {tokenizer.n_words} tokens but the weights in "
            f"{ckpt_dir} have a vocabulary of {config.vocab_size}; "
            "use the tokenizer that came with the checkpoint"
        )


def _fields(prefix: str, config: EngineConfig | ModelConfig) -> dict[str, object]:
    return {f"{prefix}.{name}": value for name, value in asdict(config).items()}
